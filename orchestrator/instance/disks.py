"""A disk that is full, in one line: which, what is free, about how much is needed, and what to do.

What meets it first is a matter of luck, a job's log or a row of the database; the sign differs, the words don't.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import DiskFull

FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
SIGN = "No space left on device"
"""How libraries that have no OSError of ours say it."""
POSTGRES_DISK_FULL = "53100"
# Below this nothing of ours fits, be it reserved for root or in blocks too small to count.
FULL_BELOW_BYTES = 16 * 2**20
LEAST_NEEDED_BYTES = 2**30


def is_full(path: Path) -> bool:
    """Whether the disk that holds the path has no room left to speak of."""
    return shutil.disk_usage(_existing(path)).free < FULL_BELOW_BYTES


def full(path: Path, what: str, needed_bytes: int = 0) -> DiskFull:
    """The error that says so: `what` could not be written; `needed_bytes` is about what it takes, 0 where unknown."""
    usage = shutil.disk_usage(_existing(path))
    needed = max(needed_bytes, LEAST_NEEDED_BYTES)
    return DiskFull(
        f"The disk of {path} is full: {_size(usage.free)} of {_size(usage.total)} free, and {what} could not be "
        f"written. Make about {_size(needed)} free there, then run the cycle again; it goes on where it stopped."
    )


def as_disk_full(error: BaseException | None, home: Path) -> DiskFull | None:
    """The one-line error for an error that a full disk was the cause of; None where it was not."""
    for cause in _causes(error):
        if isinstance(cause, DiskFull):
            return cause
        if isinstance(cause, OSError) and cause.errno in FULL_ERRORS:
            return full(Path(str(cause.filename)) if cause.filename else home, "a file")
        original: Any = getattr(cause, "orig", None)
        if getattr(original, "pgcode", None) == POSTGRES_DISK_FULL:
            found = " ".join(str(original).split())
            return DiskFull(f"The database's disk is full ({found}). Make room there, then run the cycle again.")
        if SIGN in str(cause):
            return full(home, "a file")
    return None


def folder_bytes(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _size(number: int) -> str:
    amount = float(number)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
