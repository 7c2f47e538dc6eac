"""Checkpoints of a job: copied in the step, written beside the steps that follow, two kept, checked when they are read.

    DIR/checkpoint/state.pt          the newest, whole; a file of `torch.save` and its SHA-256 behind it
    DIR/checkpoint/state.before.pt   the one before, for where the newest is damaged
    DIR/checkpoint/state.pt.tmp      being written

Of before there was a SHA-256, files are taken that can be read. `models/runtime/job.py` says what is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

NEWEST, BEFORE = "state.pt", "state.before.pt"
FREE_S = 10.0
"""Checkpoints may hold a run up for so long, whatever share of its time that is: a short one keeps all of them."""
_MARK = b"\nsha256 "
_TRAILER_BYTES = len(_MARK) + 64
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError)


class Checkpoints:
    """The checkpoints in one folder. Only one process at a time works there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing: threading.Thread | None = None
        self._failed: Exception | None = None

    def save(self, payload: Mapping[str, object]) -> None:
        """Copy the payload (tensors, numbers, strings, containers) and write it beside what follows.

        Waits for the one before to be on disk.

        Raises:
            OSError: the one before could not be written: the disk is full, say.
        """
        self.wait()
        copied = on_host(payload)
        # Not a daemon: a job that ends with a mistake still finishes the file that it has begun.
        self._writing = threading.Thread(target=self._write, args=(copied,), name=_thread_name(self.folder))
        self._writing.start()

    def wait(self) -> None:
        """Until what was saved last is on disk.

        Raises:
            OSError: it could not be written.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def newest(self) -> dict[str, Any] | None:
        """What was saved last, or before it where that is damaged, as stderr then says; None where there is none."""
        # A job that was given up in this process may still write here.
        for thread in threading.enumerate():
            if thread.name == _thread_name(self.folder):
                thread.join()
        newest, before = self.folder / NEWEST, self.folder / BEFORE
        found = [path for path in (newest, before) if path.exists()]
        for path in found:
            try:
                payload = _read(path)
            except _UNREADABLE as error:
                what = " ".join(str(error).split()) or type(error).__name__
                goes_on = "going on from the one before" if path != found[-1] else "starting over"
                print(f"note: the checkpoint {path} is damaged ({what[:200]}); {goes_on}.", file=sys.stderr)
                continue
            if path == before:
                if newest not in found:
                    print(f"note: the checkpoint {newest} is missing; going on from the one before.", file=sys.stderr)
                # So that the next one to be written moves this one aside, and not the damaged one.
                os.replace(before, newest)
            return payload
        return None

    def _write(self, payload: Mapping[str, object]) -> None:
        fresh = self.folder / f"{NEWEST}.tmp"
        try:
            self.folder.mkdir(exist_ok=True)
            with fresh.open("wb") as file:
                torch.save(payload, file)
            with fresh.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            with fresh.open("ab") as file:
                file.write(_MARK + digest.encode())
                file.flush()
                os.fsync(file.fileno())
            newest = self.folder / NEWEST
            # Killed between the two, the job goes on from the one before.
            if newest.exists():
                os.replace(newest, self.folder / BEFORE)
            os.replace(fresh, newest)
        except Exception as error:
            self._failed = _as_os_error(error)
            # What is left of it may be what fills the disk.
            with contextlib.suppress(OSError):
                fresh.unlink()


def fits_share(share: float, *, spent_s: float, next_s: float, elapsed_s: float) -> bool:
    """Whether a checkpoint that holds the job up for `next_s` leaves them all within a share of the time.

    Of 200 s and a share of 0.05, 10 s and the free ones may go into checkpoints: after 18 s of them, one of 2 s fits.
    """
    return spent_s + next_s <= FREE_S + share * elapsed_s


class Unchanging(NamedTuple):
    """A tree in the host's memory that nobody changes any more: it goes into a checkpoint without being copied."""

    value: Any


def on_host(value: Any, copied: dict[tuple[object, ...], Tensor] | None = None) -> Any:
    """A copy of a tree of dicts and lists whose tensors are in the host's memory; tied tensors stay one.

    What is `Unchanging` in it is taken as it is.
    """
    copied = {} if copied is None else copied
    if isinstance(value, Unchanging):
        return value.value
    if isinstance(value, Tensor):
        place = (value.device, value.dtype, value.data_ptr(), value.shape, value.stride())
        if value.numel() == 0 or place not in copied:
            copied[place] = value.detach().to("cpu", copy=True)
        return copied[place]
    if isinstance(value, Mapping):
        return {key: on_host(item, copied) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_host(item, copied) for item in value)
    return value


def _read(path: Path) -> dict[str, Any]:
    """The payload of a file.

    Raises:
        _UNREADABLE: it is not what was written.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TRAILER_BYTES))
        trailer = file.read()
        if trailer.startswith(_MARK):
            expected = trailer[len(_MARK) :].decode("ascii", "replace")
            if _digest_of(path, size - _TRAILER_BYTES) != expected:
                raise ValueError("its bytes are not those that were written")
    payload = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(payload, dict) or not {"spec", "step", "rng", "state"} <= payload.keys():
        raise ValueError("it holds something else")
    return payload


def _digest_of(path: Path, size: int) -> str:
    """SHA-256 (hex) of the first bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _thread_name(folder: Path) -> str:
    return f"checkpoint {folder}"


def _as_os_error(error: Exception) -> Exception:
    """What the system said, where torch tells of it in an error of its own: a full disk has a status of its own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error
