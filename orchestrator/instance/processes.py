"""Child processes of an instance: started with their own log, watched, restarted after a crash, ended in order.

A child has its own session, so that Ctrl-C reaches the owner alone, and dies with the owner (Linux).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from orchestrator.errors import ServiceUnavailable

LAUNCHER = Path(__file__).with_name("launch.py")
POLL_S = 0.2
STOP_TIMEOUT_S = 10.0
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
STEADY_S = 60.0
"""A child that ran so long is restarted at once when it ends; only quick deaths are waited out."""
LOG_TAIL_LINES = 15


@dataclass
class Child:
    """One process that should run as long as its owner does."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    health_url: str | None = None
    """Answers 200 once the child can be used; None where it offers nothing over HTTP."""
    stop_signal: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None
    _started_at_s: float = 0.0
    _backoff_s: float = FIRST_BACKOFF_S
    _restart_at_s: float | None = None
    _log_start: int = field(default=0, repr=False)

    def start(self) -> None:
        """Start the process, from a thread that lives as long as it should."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # Uid -1: the child keeps our user.
        launch = [str(LAUNCHER), str(os.getpid()), str(int(signal.SIGKILL)), "-1", "-1", "--"]
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", *launch, *self.command],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started_at_s = time.monotonic()
        self._restart_at_s = None

    def wait_until_healthy(self, timeout_s: float) -> None:
        """Return once the health address answers.

        Raises:
            ServiceUnavailable: the process ended, or did not answer in time; carries the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self.process is None or self.process.poll() is not None:
                raise ServiceUnavailable(f"The {self.name} ended while starting. {self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"The {self.name} does not answer at {self.health_url} after {timeout_s:.0f} s. {self.log_tail()}"
                )
            time.sleep(0.05)

    def _answers(self) -> bool:
        if self.health_url is None:
            return True
        try:
            # Of this machine, whatever proxies the environment names.
            return httpx.get(self.health_url, timeout=5.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def restart_if_ended(self, report: Callable[[str], None]) -> None:
        """Start the process again where it ended by itself, after a pause that grows with quick deaths."""
        if self.process is None or self.process.poll() is None:
            return
        now_s = time.monotonic()
        if self._restart_at_s is None:
            if now_s - self._started_at_s > STEADY_S:
                self._backoff_s = FIRST_BACKOFF_S
            self._restart_at_s = now_s + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
            report(f"The {self.name} {_how(self.process.returncode)}; it is started again. Its log: {self.log}")
        if now_s >= self._restart_at_s:
            self.start()

    def ask_to_stop(self) -> None:
        """Send the stop signal, without waiting."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)

    def stop(self) -> None:
        """End the process; SIGKILL to its whole session where it does not end in time."""
        if self.process is None:
            return
        self.ask_to_stop()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def log_tail(self) -> str:
        """The end of what this run of the process wrote."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").splitlines()
        return f"The end of its log ({self.log}):\n" + "\n".join(lines[-LOG_TAIL_LINES:])


class Supervisor:
    """Restarts what ended by itself, from one thread of its own.

    A child that it restarted dies with that thread; so `pause`, stop the children, then `close`.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._looking = threading.Lock()
        self._paused = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Restart nothing from now on; returns when a restart in progress is over."""
        with self._looking:
            self._paused = True

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(POLL_S):
            with self._looking:
                if not self._paused:
                    self._look()


def _how(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
