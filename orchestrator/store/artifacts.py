"""The artifact store: immutable directories, named by the digest of what is in them.

Where they are kept is a URL. The layout of one artifact and its manifest is in `local_tree.py`; what an artifact
means is in `ledger.py`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec

from orchestrator.errors import ArtifactError
from orchestrator.store.local_tree import (
    FileEntry,
    LocalTree,
    Published,
    differences,
    hash_file,
    hex_of,
    parse_manifest,
    problems_of,
)

__all__ = ["ArtifactStore", "FileEntry", "Published", "hex_of"]


class ArtifactStore:
    """Publish directories, fetch them by digest, check them.

    `url` is any fsspec URL: under `file://` artifacts are used where they lie; from `s3://` and the like they are
    downloaded into `cache` and checked before use.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ArtifactError(
                f"The artifact URL {url!r} can't be used: {error}. Expected file:///folder, or s3://bucket/prefix with "
                "the extra `s3` installed (ORCHESTRATOR_ARTIFACT_URL)."
            ) from None
        self._root = str(root).rstrip("/")
        self._remote = "file" not in _protocols(self._fs)
        self._local = LocalTree(cache / "artifacts" if self._remote else Path(self._root))

    def publish(self, directory: Path) -> Published:
        """Put a copy of `directory` into the store: written aside, hashed, visible only when complete.

        The same content gives the same digest and is stored once; a damaged copy of it is replaced. The directory
        itself is left as it is.

        Raises:
            ArtifactError: no files, a link or device among them, or a file format that can run code.
        """
        aside = self._local.aside()
        try:
            published = self._local.copy_in(directory, aside)
            if self._remote:
                self._upload(published, aside)
            self._local.put(published.digest, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return published

    def fetch(self, digest: str) -> Path:
        """A local directory with the artifact's files, each checked against size and SHA-256. Don't write into it.

        Raises:
            ArtifactError: not there, half-written, or not what its digest says.
        """
        name = hex_of(digest)
        if self._remote and (not self._local.holds(name) or self._local.problems(name)):
            self._download(digest)
        if not self._local.folder(name).exists():
            raise ArtifactError(
                f"Artifact {digest} is not in the store {self.url}. Restore it from backup, or build it again "
                "with `orchestrator cycle run --fresh`."
            )
        problems = self._local.problems(name)
        if problems:
            raise ArtifactError(self._complaint(digest, problems))
        return self._local.folder(name) / "files"

    def verify(self, digest: str) -> list[str]:
        """What is wrong with an artifact where it is kept; an empty list if nothing. Every byte is read."""
        name = hex_of(digest)
        if not self._remote:
            if not self._local.folder(name).exists():
                return ["it is missing"]
            return self._local.problems(name, remembered=False)
        return self._verify_remote(name)

    def exists(self, digest: str) -> bool:
        """Whether the store holds a complete artifact of this digest; its files are not read."""
        name = hex_of(digest)
        if self._remote:
            return bool(self._fs.exists(f"{self._root}/{name}/manifest.json"))
        return self._local.holds(name)

    def delete(self, digest: str) -> None:
        """Remove an artifact from the store and the cache; nothing happens where there is none."""
        name = hex_of(digest)
        if self._remote and self._fs.exists(f"{self._root}/{name}"):
            # The manifest goes first: from then on the artifact does not exist, however far the rest gets.
            if self._fs.exists(f"{self._root}/{name}/manifest.json"):
                self._fs.rm_file(f"{self._root}/{name}/manifest.json")
            self._fs.rm(f"{self._root}/{name}", recursive=True)
        self._local.remove(name)

    def _upload(self, published: Published, aside: Path) -> None:
        name = hex_of(published.digest)
        base = f"{self._root}/{name}"
        if self._fs.exists(f"{base}/manifest.json") and not self._verify_remote(name):
            return
        for entry in published.files:
            target = f"{base}/files/{entry.path}"
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(aside / "files" / entry.path), target)
        # Last: a store without rename shows an artifact only through its manifest.
        self._fs.pipe_file(f"{base}/manifest.json", (aside / "manifest.json").read_bytes())

    def _download(self, digest: str) -> None:
        name = hex_of(digest)
        base = f"{self._root}/{name}"
        if not self._fs.exists(f"{base}/manifest.json"):
            found = "is half-written: it has no manifest" if self._fs.exists(base) else "is not there"
            raise ArtifactError(
                f"Artifact {digest} {found} in the store {self.url}. Restore it from backup, or publish it again."
            )
        aside = self._local.aside()
        try:
            manifest = self._fs.cat_file(f"{base}/manifest.json")
            (aside / "manifest.json").write_bytes(manifest)
            for entry in self._entries(digest, manifest):
                target = aside / "files" / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(f"{base}/files/{entry.path}", str(target))
                except FileNotFoundError:
                    raise ArtifactError(self._complaint(digest, [f"file {entry.path} is missing"])) from None
            problems = problems_of(aside, name)
            if problems:
                raise ArtifactError(self._complaint(digest, problems))
            self._local.remove(name)
            self._local.put(digest, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _entries(self, digest: str, manifest: bytes) -> list[FileEntry]:
        try:
            return parse_manifest(manifest, hex_of(digest))
        except ValueError as error:
            raise ArtifactError(self._complaint(digest, [str(error)])) from None

    def _verify_remote(self, name: str) -> list[str]:
        base = f"{self._root}/{name}"
        if not self._fs.exists(f"{base}/manifest.json"):
            return ["it is half-written: it has no manifest"] if self._fs.exists(base) else ["it is missing"]
        try:
            entries = parse_manifest(self._fs.cat_file(f"{base}/manifest.json"), name)
        except ValueError as error:
            return [str(error)]
        problems = []
        for entry in entries:
            path = f"{base}/files/{entry.path}"
            if not self._fs.exists(path):
                problems.append(f"file {entry.path} is missing")
                continue
            with self._fs.open(path, "rb") as file:
                size, sha256 = hash_file(file)
            problems += differences(entry, size, sha256)
        return problems

    def _complaint(self, digest: str, problems: list[str]) -> str:
        where = f"{self._root}/{hex_of(digest)}"
        return (
            f"Artifact {digest} under {where} is not what its digest says: {'; '.join(problems[:5])}. "
            "Restore it from backup; do not edit artifacts in place."
        )


def _protocols(fs: Any) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
