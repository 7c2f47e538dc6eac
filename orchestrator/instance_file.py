"""What a running instance tells other processes on this machine: `instance.json` in its home.

The process that runs the instance holds a lock on `instance.lock`, so a file left by a killed one is not believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ServiceUnavailable

FILE = "instance.json"
LOCK = "instance.lock"


@dataclass(frozen=True)
class InstanceFile:
    """Addresses and secrets of a running instance; the file is readable by its owner alone."""

    pid: int
    database_url: str
    prefect_api_url: str
    policy_url: str
    feedback_url: str
    admin_token: str

    def write(self, home: Path) -> None:
        """Replace the file."""
        aside = home / f"{FILE}.new"
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file, indent=1)
        aside.replace(home / FILE)


def remembered(home: Path) -> dict[str, Any]:
    """The file as it was left, whether or not the instance still runs; {} where there is none."""
    try:
        found: dict[str, Any] = json.loads((home / FILE).read_text())
        return found
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def running(home: Path) -> InstanceFile | None:
    """The instance that runs on this home now, or None."""
    try:
        with (home / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        found = remembered(home)
        return InstanceFile(**found) if found else None
    except OSError:
        return None


@contextlib.contextmanager
def held(home: Path) -> Iterator[None]:
    """Hold the home for one instance.

    Raises:
        ServiceUnavailable: another instance runs on it; the message names its process.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = remembered(home).get("pid")
            raise ServiceUnavailable(
                f"An instance already runs on {home}{f' (process {pid})' if pid else ''}. "
                "End it first, or choose another ORCHESTRATOR_HOME."
            ) from None
        yield
