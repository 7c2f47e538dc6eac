"""Artifacts in a local folder: the store itself under `file://`, the cache of a remote one.

An artifact is `<root>/<hex>/files/...` with `<root>/<hex>/manifest.json` beside them, which lists path, size and
SHA-256 of every file; the digest is the SHA-256 of that manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from orchestrator.errors import ArtifactError

MANIFEST_FORMAT = 1
BLOCK_BYTES = 1 << 20
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

# Formats that run code when they are loaded. Artifacts hold safetensors, JSON(L), text and pictures.
REFUSED_SUFFIXES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}

# A publication that died left its directory aside; nobody works on one for a day.
ABANDONED_AFTER_S = 24 * 3600
ASIDE_PREFIX = ".aside-"


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact; `path` is relative, with forward slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """What a publication gave: the digest, and what lies under it."""

    digest: str
    num_bytes: int
    files: tuple[FileEntry, ...]


class LocalTree:
    """Artifacts in a local folder: the store itself under `file://`, the cache otherwise."""

    # Digests checked by this process, with the times and sizes their files had then: a later change is noticed.
    _checked: ClassVar[dict[tuple[str, str], tuple[tuple[str, int, int, int], ...]]] = {}
    # Files found sound by this process, by device and inode: time, size and SHA-256. A new artifact that holds a hard
    # link to one of them shares it, unread.
    _sound: ClassVar[dict[tuple[int, int], tuple[int, int, str]]] = {}
    _lock = threading.Lock()

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def folder(self, name: str) -> Path:
        return self.root / name

    def holds(self, name: str) -> bool:
        return (self.folder(name) / "manifest.json").is_file()

    def aside(self) -> Path:
        """A new directory beside the artifacts, so that a rename within one file system makes it one of them."""
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(f"{ASIDE_PREFIX}*"):
            try:
                if time.time() - left.stat().st_mtime > ABANDONED_AFTER_S:
                    shutil.rmtree(left, ignore_errors=True)
            except FileNotFoundError:
                continue
        path = self.root / f"{ASIDE_PREFIX}{uuid.uuid4().hex}"
        path.mkdir()
        return path

    def copy_in(self, directory: Path, aside: Path) -> Published:
        """Copy `directory` to `aside/files` and write the manifest of the bytes that were copied."""
        entries = []
        for relative in sorted(_regular_files(directory)):
            target = aside / "files" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shared = self._share(directory / relative, target)
            entries.append(FileEntry(relative, *(shared or _copy(directory / relative, target))))
        if not entries:
            raise ArtifactError(f"{directory} holds no files; an artifact needs at least one.")
        manifest = _manifest_bytes(entries)
        with (aside / "manifest.json").open("wb") as out:
            out.write(manifest)
            out.flush()
            os.fsync(out.fileno())
        digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
        return Published(digest, sum(entry.size for entry in entries), tuple(entries))

    def _share(self, source: Path, target: Path) -> tuple[int, str] | None:
        """Link to a file of this tree that was found sound, where `source` is one; its size and SHA-256."""
        status = source.stat()
        with self._lock:
            modified, size, sha256 = self._sound.get((status.st_dev, status.st_ino), (0, 0, ""))
        if (modified, size) != (status.st_mtime_ns, status.st_size):
            return None
        try:
            os.link(source.resolve(), target)
        except OSError:
            return None
        return size, sha256

    def put(self, digest: str, aside: Path) -> None:
        """Make `aside` the artifact `digest`, unless a sound copy is there."""
        name = hex_of(digest)
        target = self.folder(name)
        while True:
            try:
                aside.rename(target)
            except OSError:
                # A directory can't be renamed onto a filled one: somebody published the same, now or before.
                if not target.exists():
                    raise
                if not self.problems(name, remembered=False):
                    return
                self.remove(name)
            else:
                _sync_directory(self.root)
                return

    def problems(self, name: str, *, remembered: bool = True) -> list[str]:
        """What is wrong with the copy; one that was sound and has not been touched since is not read again."""
        folder = self.folder(name)
        key = (str(self.root), name)
        seen = _signature(folder)
        with self._lock:
            if remembered and seen and self._checked.get(key) == seen:
                return []
        found = problems_of(folder, name)
        with self._lock:
            if found:
                self._checked.pop(key, None)
                return found
            self._checked[key] = seen
            for entry in parse_manifest((folder / "manifest.json").read_bytes(), name):
                status = (folder / "files" / entry.path).stat()
                self._sound[status.st_dev, status.st_ino] = (status.st_mtime_ns, status.st_size, entry.sha256)
        return []

    def remove(self, name: str) -> None:
        """Remove a copy: out of sight in one step, then deleted."""
        grave = self.root / f"{ASIDE_PREFIX}{uuid.uuid4().hex}"
        try:
            self.folder(name).rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)


def hex_of(digest: str) -> str:
    """The 64 hex digits of `sha256:...`.

    Raises:
        ArtifactError: not a digest.
    """
    match = DIGEST.fullmatch(digest)
    if match is None:
        raise ArtifactError(f"{digest!r} is not an artifact digest; expected sha256: and 64 hex digits.")
    return match.group(1)


def _regular_files(directory: Path) -> Iterator[str]:
    """Relative paths of all files, links to files included; refuses what can't be kept under a digest."""
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is not a directory; an artifact is one.")
    for parent, folders, names in os.walk(directory):
        for name in folders:
            if Path(parent, name).is_symlink():
                raise ArtifactError(f"{Path(parent, name)} is a link to a directory; artifacts hold files only.")
        for name in names:
            path = Path(parent, name)
            if not path.is_file():
                raise ArtifactError(f"{path} is a device or a link to nothing; artifacts hold plain files only.")
            if path.suffix.lower() in REFUSED_SUFFIXES:
                raise ArtifactError(
                    f"{path} is a format that can run code when loaded; artifacts hold safetensors, JSON, text "
                    "and pictures only. Convert it to safetensors."
                )
            yield path.relative_to(directory).as_posix()


def _manifest_bytes(entries: list[FileEntry]) -> bytes:
    files = [{"path": entry.path, "sha256": entry.sha256, "size": entry.size} for entry in entries]
    manifest = {"format": MANIFEST_FORMAT, "files": sorted(files, key=lambda file: str(file["path"]))}
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def parse_manifest(content: bytes, name: str) -> list[FileEntry]:
    """The entries of a manifest.

    Raises:
        ValueError: its bytes are not those the digest was made of.
    """
    if hashlib.sha256(content).hexdigest() != name:
        raise ValueError("its manifest was changed")
    entries = [FileEntry(**file) for file in json.loads(content)["files"]]
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"its manifest names a path outside of it: {entry.path}")
    return entries


def problems_of(folder: Path, name: str) -> list[str]:
    try:
        content = (folder / "manifest.json").read_bytes()
    except FileNotFoundError:
        return ["it is half-written: it has no manifest"]
    try:
        entries = parse_manifest(content, name)
    except ValueError as error:
        return [str(error)]
    problems = []
    for entry in entries:
        try:
            with (folder / "files" / entry.path).open("rb") as file:
                size, sha256 = hash_file(file)
        except FileNotFoundError:
            problems.append(f"file {entry.path} is missing")
            continue
        problems += differences(entry, size, sha256)
    known = {entry.path for entry in entries}
    found = {path.relative_to(folder / "files").as_posix() for path in (folder / "files").rglob("*") if path.is_file()}
    return problems + [f"file {extra} does not belong to it" for extra in sorted(found - known)]


def differences(entry: FileEntry, size: int, sha256: str) -> list[str]:
    if size != entry.size:
        return [f"file {entry.path} has {size} bytes, its manifest says {entry.size}"]
    if sha256 != entry.sha256:
        return [f"file {entry.path} has SHA-256 {sha256[:12]}…, its manifest says {entry.sha256[:12]}…"]
    return []


def _signature(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Path, time, size and inode of every file: changes when any of them is written."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            found.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def hash_file(source: Any, copy_to: Any = None) -> tuple[int, str]:
    """Size and SHA-256 of an open file, copied on the way where asked."""
    size, sha256 = 0, hashlib.sha256()
    while block := source.read(BLOCK_BYTES):
        size += len(block)
        sha256.update(block)
        if copy_to is not None:
            copy_to.write(block)
    return size, sha256.hexdigest()


def _copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file to where nobody may change it; size and SHA-256 of the bytes that were copied."""
    with source.open("rb") as opened, target.open("wb") as out:
        size, sha256 = hash_file(opened, out)
        out.flush()
        os.fsync(out.fileno())
    target.chmod(0o444)
    return size, sha256


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
