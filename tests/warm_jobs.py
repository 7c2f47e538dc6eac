"""Jobs as processes that need not import torch first: for tests of whole cycles, in which that is most of the time.

`python -m tests.warm_jobs SOCKET` imports once what every job imports, and forks for each that it is asked for. The job
is a process of its own with its spec, its log and its exit status, as from the command line; that the command line
itself works is what the tests of `run_job`, of the bare environment and of the instance are for.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.paths import PROJECT_ROOT

START_TIMEOUT_S = 120.0
OK = 0


class WarmJobs:
    """The process that forks, and what asks it in the place of `training_jobs._run`."""

    def __init__(self, address: Path) -> None:
        self._address = address

    def run(self, command: list[str], *, log: Path, threads: int, check_wanted: object = None) -> int:
        """Run `python -m models.jobs.<name> ARGS`; gives its exit status, or minus the signal that ended it.

        So short are these jobs that nobody ends them.
        """
        assert command[:2] == [sys.executable, "-m"]
        assert threads == 1, "the libraries were told so when they were imported"
        asked = {"module": command[2], "arguments": command[3:], "log": str(log), "env": dict(os.environ)}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._address))
            connection.sendall(json.dumps(asked).encode() + b"\n")
            with connection.makefile() as answer:
                return int(answer.readline())


@contextlib.contextmanager
def warm_jobs(folder: Path) -> Iterator[WarmJobs]:
    """The process while it is needed; `folder` has room for a socket, whose path must be short."""
    address = folder / "jobs"
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    # It ends when its input does, also where this process is killed.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_jobs", str(address)],
        cwd=PROJECT_ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], START_TIMEOUT_S)[0], "the jobs' process did not start"
        assert process.stdout.readline() == b"ready\n"
        yield WarmJobs(address)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _serve(address: str) -> None:
    import gc

    import models.jobs

    assert models.jobs
    # What is there now stays: the children's collector need not look at it, nor copy its pages.
    gc.collect()
    gc.freeze()
    # Nobody waits for the processes that wait for jobs.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
                os._exit(OK)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """In a process for this one request: fork the job, wait for it, say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection, connection.makefile() as lines:
        asked = json.loads(lines.readline())
        job = os.fork()
        if job == 0:
            os._exit(_run(asked))
        status = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
        connection.sendall(f"{status}\n".encode())


def _run(asked: dict[str, Any]) -> int:
    """The job, in its process; gives the exit status."""
    os.setsid()
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = ["", *asked["arguments"]]
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        return OK
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
