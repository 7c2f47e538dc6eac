"""What a running instance tells other processes on this machine: `instance.json` in its home.

The process that runs the instance holds a lock on `instance.lock`, so a file left by a killed one is not believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
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


def default_home() -> Path:
    """The home where `ORCHESTRATOR_HOME` names none."""
    return Path.home() / ".orchestrator"


def other_running(home: Path) -> list[Path]:
    """Homes on which an instance runs: the default one, and what lies within it or within this one, as demos' do."""
    places = {
        place for base in (default_home(), home) for place in (base, *(file.parent for file in base.glob(f"*/{FILE}")))
    }
    return sorted(place for place in places if place != home and running(place) is not None)


def elsewhere(home: Path) -> str:
    """How to speak to the instances that do run, as a sentence after one that says that none runs on the home."""
    found = other_running(home)
    if not found:
        return ""
    several = " (or " + ", ".join(map(str, found[1:])) + ")" if len(found) > 1 else ""
    return f" One runs on {found[0]}{several}: `export ORCHESTRATOR_HOME={shlex.quote(str(found[0]))}` to speak to it."


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
