"""Our services as the processes that people run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.paths import PROJECT_ROOT


def start(command: str, port: int, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """One of our services, not waited for."""
    arguments = [sys.executable, "-m", "orchestrator.cli", command, "--port", str(port)]
    return subprocess.Popen(arguments, cwd=PROJECT_ROOT, env=env, start_new_session=True)


def wait_until_live(port: int) -> None:
    """Return when the service answers and has a live policy."""
    deadline = time.monotonic() + 60
    while True:
        try:
            health = httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).json()
            if health.get("live") or health.get("policy_live"):
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"port {port} does not answer"
        time.sleep(0.05)


@contextmanager
def ended(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    """The time in which the processes may run."""
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            # uvicorn shuts down and then dies of the signal that asked for it.
            assert process.wait(20) == -signal.SIGTERM
