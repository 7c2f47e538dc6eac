"""Run a training job as a process of its own, in its work directory, under a lock.

The job's contract is in `models/runtime/job.py`. The process has its own session and log file, so that it cannot
keep a flow's output open, and dies with the worker that started it; started again, it continues from its checkpoint.
One that nobody wants any more is asked to end by SIGTERM, and killed where it doesn't.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import DiskFull, JobFailed, JobRefused
from orchestrator.instance import disks
from orchestrator.instance.processes import LAUNCHER
from orchestrator.settings import PROJECT_ROOT, read

_SENT_BY = {
    signal.SIGTERM: " (its run was cancelled, or the machine is being stopped)",
    signal.SIGKILL: " (somebody killed it, or the machine had no memory left)",
}
"""Who sends a signal to a job, for the operator who reads of it."""
LOG_TAIL_LINES = 15
# EXIT_DISK_FULL of models/runtime/job.py, which brings torch.
DISK_FULL_STATUS = 28
POLL_S = 0.2
CHECK_S = 1.0
"""How often it is asked whether a job is still wanted."""
GRACE_S = 8.0
"""For how long a job may go on after SIGTERM; nobody who cancels waits longer than 10 s."""

ended: ContextVar[threading.Event | None] = ContextVar("ended", default=None)
"""Set where a run is ended from outside its threads: the job that is run with this in its context is ended too."""


@dataclass(frozen=True)
class JobRun:
    """What a finished job left: its result directory, and the wall time its process took here, in seconds."""

    result: Path
    seconds: float


def run_job(
    name: str,
    *,
    inputs: dict[str, Path],
    settings: Mapping[str, Any],
    seed: int,
    work: Path,
    device: str = "auto",
    python: str | None = None,
    check_wanted: Callable[[], None] = lambda: None,
) -> JobRun:
    """Run `models.jobs.<name>` in `work` until `work/result` is there, or find it there already.

    `settings["threads"]`, where present, becomes the spec's thread count. Two callers with the same work directory
    wait for each other; the second finds the first one's result. `check_wanted` is called every second, and ends the
    job by raising.

    Raises:
        JobFailed: the process ended without a result; the message carries the end of its log.
        DiskFull: the process ended because the disk is full.
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
    if read("ORCHESTRATOR_MEMORY_CHECK") == "off":
        spec["check_memory"] = False
    result = work / "result"
    with _locked(work / "lock"):
        if result.is_dir():
            return JobRun(result, 0.0)
        # Whoever held the lock may have held it for long.
        check_wanted()
        spec_file = work / "spec.json"
        spec_file.write_text(json.dumps(spec, indent=1, sort_keys=True))
        started_s = time.monotonic()
        status = _run(
            [python or sys.executable, "-m", f"models.jobs.{name}", "--spec", str(spec_file), "--out", str(work)],
            log=work / "job.log",
            threads=int(spec["threads"]),
            check_wanted=check_wanted,
        )
        seconds = time.monotonic() - started_s
        if status != 0 or not result.is_dir():
            raise _failure(name, status, work, inputs.values())
    return JobRun(result, seconds)


def _run(command: list[str], *, log: Path, threads: int, check_wanted: Callable[[], None]) -> int:
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
            return _wait(process, check_wanted)
        except BaseException:
            # Cancelled or interrupted: a job must not train on for nobody. It continues from its checkpoint later.
            end(process)
            raise


def _wait(process: subprocess.Popen[bytes], check_wanted: Callable[[], None]) -> int:
    """The job's exit status, once it has ended; asks meanwhile whether it is wanted."""
    stop, checked_s = ended.get(), time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_S)
        if stop is not None and stop.is_set():
            end(process)
            return process.wait()
        if time.monotonic() - checked_s >= CHECK_S:
            check_wanted()
            checked_s = time.monotonic()


def end(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """Ask a job and what it started to end, and kill them where they don't in time."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    # Also what outlived the job itself; the group's number is not given anew while one of them lives.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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


def _failure(name: str, status: int, work: Path, inputs: Iterable[Path]) -> JobFailed | DiskFull:
    log = work / "job.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    # A full disk keeps the log from saying so.
    if status == DISK_FULL_STATUS or disks.is_full(work) or any(disks.SIGN in line for line in lines[-LOG_TAIL_LINES:]):
        # The largest input in float32, two moments of Adam and the result: what a training writes.
        needed = 4 * max((disks.folder_bytes(path) for path in inputs), default=0)
        return disks.full(work, f"what job {name} makes", needed)
    errors = [line for line in lines if line.startswith("error: ")]
    if status == 2 and errors:
        # A person's mistake: the job said it in one line.
        return JobRefused(f"Job {name}: {errors[-1].removeprefix('error: ')} (log: {log})")
    if status < 0:
        sent = signal.Signals(-status)
        how = f"was ended by {sent.name}{_SENT_BY.get(sent, '')}"
    else:
        how = f"ended with status {status}" if status else "ended with status 0 but left no result"
    tail = "\n".join(lines[-LOG_TAIL_LINES:])
    told = f"The end of its log ({log}):\n{tail}" if tail.strip() else f"It wrote nothing to its log ({log})."
    return JobFailed(f"Job {name} {how}. Run the cycle again to continue from its last checkpoint. {told}")


def fresh_name(fingerprint: str, cycle_id: int | None) -> str:
    """Name of the work directory of a stage that is to find nothing."""
    return f"{fingerprint}-fresh-{'experiment' if cycle_id is None else cycle_id}"
