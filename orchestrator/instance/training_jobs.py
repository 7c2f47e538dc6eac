"""Run a training job as a process of its own, in its work directory, under a lock.

The job's contract is in `models/runtime/job.py`. The process has its own session and log file, so that it cannot
keep a flow's output open, and dies with the worker that started it; started again, it continues from its checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import JobFailed, JobRefused
from orchestrator.instance.processes import LAUNCHER
from orchestrator.settings import PROJECT_ROOT

LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class JobRun:
    """What a finished job left: its result directory, and the wall time its process took here, in seconds."""

    result: Path
    seconds: float


def run_job(
    name: str,
    *,
    inputs: dict[str, Path],
    settings: dict[str, Any],
    seed: int,
    work: Path,
    device: str = "auto",
    python: str | None = None,
) -> JobRun:
    """Run `models.jobs.<name>` in `work` until `work/result` is there, or find it there already.

    `settings["threads"]`, where present, becomes the spec's thread count. Two callers with the same work directory
    wait for each other; the second finds the first one's result.

    Raises:
        JobFailed: the process ended without a result; the message carries the end of its log.
    """
    work.mkdir(parents=True, exist_ok=True)
    settings = dict(settings)
    spec = {
        "job": name,
        "inputs": {role: str(path) for role, path in inputs.items()},
        "settings": settings,
        "seed": seed,
        "threads": settings.pop("threads", 1),
        "device": device,
    }
    result = work / "result"
    with _locked(work / "lock"):
        if result.is_dir():
            return JobRun(result, 0.0)
        spec_file = work / "spec.json"
        spec_file.write_text(json.dumps(spec, indent=1, sort_keys=True))
        started_s = time.monotonic()
        status = _run(
            [python or sys.executable, "-m", f"models.jobs.{name}", "--spec", str(spec_file), "--out", str(work)],
            log=work / "job.log",
            threads=int(spec["threads"]),
        )
        seconds = time.monotonic() - started_s
        if status != 0 or not result.is_dir():
            raise _failure(name, status, work)
    return JobRun(result, seconds)


def _run(command: list[str], *, log: Path, threads: int) -> int:
    env = dict(os.environ)
    # The job runs wherever the flow does, a throwaway directory for one; `models` must be found from there.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT_ROOT), env.get("PYTHONPATH")]))
    env["OMP_NUM_THREADS"] = str(threads)
    # Waiting threads sleep: spinning ones took a busy machine of 2 cores from 3,600 tokens a second to 80.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env["PYTHONUNBUFFERED"] = "1"
    # A job gets directories only; it must not ask a hub, and transformers reads this when it is imported.
    env["HF_HUB_OFFLINE"] = "1"
    env["TOKENIZERS_PARALLELISM"] = "false"
    # Uid -1: the job keeps our user.
    launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(int(signal.SIGKILL)), "-1", "-1", "--"]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*launch, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=PROJECT_ROOT,
            start_new_session=True,
        )
        try:
            return process.wait()
        except BaseException:
            # Cancelled or interrupted: a job must not train on for nobody. It continues from its checkpoint later.
            process.kill()
            process.wait()
            raise


def is_running(work: Path) -> bool | None:
    """Whether somebody runs a job in this work directory; None where no `run_job` ever did."""
    try:
        file = (work / "lock").open()
    except FileNotFoundError:
        return None
    with file:
        try:
            # Shared, and let go at once: whoever wants to start a job meanwhile waits for no longer than this.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _failure(name: str, status: int, work: Path) -> JobFailed:
    log = work / "job.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if line.startswith("error: ")]
    if status == 2 and errors:
        # A person's mistake: the job said it in one line.
        return JobRefused(f"Job {name}: {errors[-1].removeprefix('error: ')} (log: {log})")
    if status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    else:
        how = f"ended with status {status}" if status else "ended with status 0 but left no result"
    tail = "\n".join(lines[-LOG_TAIL_LINES:])
    return JobFailed(
        f"Job {name} {how}. Run the cycle again to continue from its last checkpoint. "
        f"The end of its log ({log}):\n{tail}"
    )


def fresh_name(fingerprint: str, cycle_id: int | None) -> str:
    """Name of the work directory of a stage that is to find nothing."""
    return f"{fingerprint}-fresh-{'experiment' if cycle_id is None else cycle_id}"
