"""What every training job shares: spec, metrics, progress, exact resume, atomic publication.

A job is `python -m models.jobs.<name> --spec spec.json --out DIR`. Killed at any moment and started again
with the same command it continues from its checkpoint and, on CPU, ends with the same bytes in `DIR/result/`.
See `models/jobs/pretrain.py` for a job that uses all of it.

    DIR/result/          the artifact, appears by one rename when complete
    DIR/result/results.json   the numbers; no times, hosts or throughput
    DIR/metrics.jsonl    one object per step, appended while the job runs
    DIR/checkpoint/      resume state, the newest and the one before, deleted once the result is published
    DIR/progress.json    {"step", "steps", "eta_s", "phase"}, replaced at most twice a second
    DIR/run.json         times, host, threads, throughput
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from models.runtime.checkpoints import Checkpoints, fits_share
from models.runtime.errors import JobError
from models.runtime.memory import keep_freed_memory

PROGRESS_INTERVAL_S = 0.5
EXIT_MISTAKE = 2
# By the status alone a job can tell of a full disk: its log lies there too.
EXIT_DISK_FULL = 28


class Job:
    """One run of a job: what it was asked, and where it writes.

    Log a step before saving the checkpoint of that step: on resume, metrics of later steps are cut off and
    those of the checkpoint's step stay.
    """

    def __init__(self, spec: Mapping[str, Any], out: Path) -> None:
        self.spec = dict(spec)
        self.out = out
        self.inputs = _inputs(self.spec)
        self.settings: dict[str, Any] = dict(self.spec.get("settings") or {})
        self.seed = int(self.spec.get("seed", 0))
        self.threads = int(self.spec.get("threads", 1))
        self.device = _device(str(self.spec.get("device", "auto")))
        # Facts for run.json (throughput and the like), which is outside the digest.
        self.facts: dict[str, object] = {}
        self.resumed_at_step: int | None = None
        self._started_at = datetime.now(UTC)
        self._started_s = time.monotonic()
        self._phase: tuple[str, int, float] | None = None
        self._progress_written_s = -math.inf
        self._checkpoints = Checkpoints(out / "checkpoint")
        self._held_up_s: list[float] = []  # by each checkpoint

    @classmethod
    def from_args(cls, argv: Sequence[str] | None = None) -> Job:
        """The job named on the command line, with threads, seeds and determinism set for this process.

        Raises:
            JobError: the spec can't be read, or names a missing input.
        """
        parser = argparse.ArgumentParser(description="Run one training job.")
        parser.add_argument("--spec", type=Path, required=True, help="JSON file: job, inputs, settings, seed, threads")
        parser.add_argument("--out", type=Path, required=True, help="directory for the result and everything about it")
        args = parser.parse_args(argv)
        try:
            spec = json.loads(args.spec.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"Can't read the spec {args.spec}: {error}. Expected a JSON object.") from error
        if not isinstance(spec, dict):
            raise JobError(f"The spec {args.spec} is a JSON {type(spec).__name__}; expected an object.")
        out = args.out.absolute()
        out.mkdir(parents=True, exist_ok=True)
        job = cls(spec, out)
        job.prepare_process()
        return job

    def prepare_process(self) -> None:
        """Set threads, seeds and deterministic algorithms; the same spec then gives the same bits on CPU."""
        torch.set_num_threads(self.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        random.seed(self.seed)
        torch.manual_seed(self.seed)
        if self.device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            # Filling every torch.empty with NaN finds bugs but costs time; nothing here reads uninitialised
            # memory.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def input(self, name: str) -> Path:
        """The input directory of that name.

        Raises:
            JobError: the spec has no such input.
        """
        if name not in self.inputs:
            known = ", ".join(sorted(self.inputs)) or "none"
            raise JobError(f"The spec has no input '{name}' (it has: {known}). Add it under \"inputs\".")
        return self.inputs[name]

    @property
    def done(self) -> bool:
        """Whether the result has been published already."""
        return (self.out / "result").is_dir()

    # Metrics and progress

    def log(self, step: int, **numbers: float | int | str | None) -> None:
        """Append one line to metrics.jsonl; numbers that are not finite become null."""
        line = {"step": step} | {key: _finite(value) for key, value in numbers.items()}
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def progress(self, step: int, steps: int, phase: str) -> None:
        """Replace progress.json, at most every half second except for a phase's first and last step."""
        now = time.monotonic()
        if self._phase is None or self._phase[0] != phase:
            self._phase = (phase, step, now)
        elif step < steps and now - self._progress_written_s < PROGRESS_INTERVAL_S:
            return
        _, first_step, since_s = self._phase
        done = step - first_step
        eta_s = (now - since_s) / done * (steps - step) if done > 0 else None
        state = {
            "step": step,
            "steps": steps,
            "eta_s": None if eta_s is None else round(eta_s, 1),
            "phase": phase,
        }
        self._progress_written_s = now
        _replace(self.out / "progress.json", json.dumps(state))

    # Resume

    def checkpoint_due(self, done: int, steps: int, every: int, share: float) -> bool:
        """Whether to save one after `done` of so many steps: every so many, but for the last one and while time allows.

        They hold the job up for at most that share of its time; which steps have one then depends on the clock, and
        nothing that is learned does.
        """
        if done % every or done >= steps:
            return False
        next_s = self._held_up_s[-1] if self._held_up_s else 0.0
        elapsed_s = time.monotonic() - self._started_s
        return fits_share(share, spent_s=sum(self._held_up_s), next_s=next_s, elapsed_s=elapsed_s)

    def save_checkpoint(self, step: int, state: Mapping[str, object]) -> None:
        """Keep `state` (tensors, numbers, strings, containers) and torch's random state, as they are now.

        They are copied here and written beside the steps that follow, atomically; the next one waits for it, and so
        does the result. The one before stays.

        Raises:
            OSError: the one before could not be written.
        """
        began_s = time.monotonic()
        payload = {"spec": self._spec_digest(), "step": step, "rng": torch.get_rng_state(), "state": state}
        if self.device.type == "cuda":
            payload["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        self._checkpoints.save(payload)
        self._held_up_s.append(time.monotonic() - began_s)

    def wait_for_checkpoint(self) -> None:
        """Until the last checkpoint is on disk, and no copy of what is in it is held for that any more.

        Raises:
            OSError: it could not be written.
        """
        began_s = time.monotonic()
        self._checkpoints.wait()
        if self._held_up_s:
            self._held_up_s[-1] += time.monotonic() - began_s

    def load_checkpoint(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the last checkpoint that can be read, or None for a fresh start.

        Restores torch's random state and cuts metrics.jsonl back to that step. A checkpoint of another spec
        (settings were changed by hand in the same directory) is discarded with a note on stderr, and so is a damaged
        one, for the one before.
        """
        payload = self._checkpoints.newest()
        if payload is not None and payload["spec"] != self._spec_digest():
            print(f"note: {self._checkpoints.folder} belongs to other settings; starting over.", file=sys.stderr)
            payload = None
        if payload is None:
            self._cut_metrics(-1)
            return None
        torch.set_rng_state(payload["rng"])
        if self.device.type == "cuda" and "rng_cuda" in payload:
            torch.cuda.set_rng_state(payload["rng_cuda"], self.device)
        step = int(payload["step"])
        self._cut_metrics(step)
        self.resumed_at_step = step
        return step, payload["state"]

    def _spec_digest(self) -> str:
        """Digest of what determines the numbers; input paths may differ from one start to the next."""
        what = {key: self.spec.get(key) for key in ("job", "settings", "seed", "threads", "device")}
        what["inputs"] = sorted(self.inputs)
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _cut_metrics(self, last_step: int) -> None:
        path = self.out / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            # The last line may be half written: the process was killed.
            if not line.endswith("\n") or _step_of(line, path) > last_step:
                break
            kept.append(line)
        _replace(path, "".join(kept))

    # Result

    def publish(self, write: Callable[[Path], None], results: Mapping[str, Any]) -> None:
        """Write the result aside, flush it to disk, and make it appear by one rename.

        `write` fills an empty directory; `results` becomes its results.json.

        Raises:
            JobError: the results say that no optimiser step was taken; an untrained model is not a result.
            OSError: the result, or the last checkpoint, could not be written.
        """
        if results.get("optimiser_steps") == 0:
            raise JobError("No optimiser step was taken; expected at least one. Give more input or a smaller batch.")
        self._checkpoints.wait()
        aside = self.out / "result.tmp"
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir()
        write(aside)
        text = json.dumps(_finite_tree(results), indent=2, sort_keys=True)
        (aside / "results.json").write_text(text + "\n", encoding="utf-8")
        for path in sorted(aside.rglob("*")):
            _fsync(path)
        _fsync(aside)
        # Before the rename, so that a published result always has its side file.
        _replace(self.out / "run.json", json.dumps(self._run_facts(), indent=2, sort_keys=True) + "\n")
        os.rename(aside, self.out / "result")
        _fsync(self.out)
        shutil.rmtree(self.out / "checkpoint", ignore_errors=True)

    def _run_facts(self) -> Mapping[str, object]:
        return {
            "job": self.spec.get("job"),
            "started_at": self._started_at.isoformat(),
            "ended_at": datetime.now(UTC).isoformat(),
            "seconds": round(time.monotonic() - self._started_s, 3),
            "checkpoint_seconds": round(sum(self._held_up_s), 3),
            "resumed_at_step": self.resumed_at_step,
            "host": platform.node(),
            "device": str(self.device),
            "threads": self.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
        } | self.facts


def main(name: str, run: Callable[[Job], None], argv: Sequence[str] | None = None) -> None:
    """Entry of a job module: parse, run once, and turn a JobError into one line and exit status 2.

    A full disk ends in a status of its own, since the line may find no room.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A log is read as UTF-8, whatever the terminal shows from which all was started.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        job = Job.from_args(argv)
        if job.spec.get("job", name) != name:
            raise JobError(f"The spec is for the job '{job.spec['job']}', but '{name}' was started.")
        if not job.done:
            run(job)
            if not job.done:
                raise AssertionError(f"job {name} ended without publishing a result")
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_DISK_FULL)
    except torch.OutOfMemoryError as error:
        print(
            f"error: out of GPU memory: {str(error).splitlines()[0]} Lower the batch setting.",
            file=sys.stderr,
        )
        sys.exit(EXIT_MISTAKE)


def _inputs(spec: Mapping[str, Any]) -> dict[str, Path]:
    inputs = {name: Path(path) for name, path in (spec.get("inputs") or {}).items()}
    for name, path in inputs.items():
        if not path.is_dir():
            raise JobError(f"Input '{name}' is {path}, which is not a directory. Fetch it first.")
    return inputs


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _finite(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite_tree(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite_tree(item) for item in value]
    return _finite(value)


def _step_of(line: str, path: Path) -> float:
    """The step of a line of metrics; beyond every step where it can't be read, which is said on stderr."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        print(f"note: {path} is damaged; what comes after its last readable line is lost.", file=sys.stderr)
        return math.inf


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
