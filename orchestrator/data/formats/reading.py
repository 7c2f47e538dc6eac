"""Files as streams of raw records: JSONL or one JSON array, plain or gzip, with errors that name file and line.

Memory does not grow with the file: at most one record is held, and a record has an upper size.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, cast

from orchestrator.errors import ImportFileError

MAX_RECORD_BYTES = 16 * 2**20
"""The longest record of the known public sets is under 0.1 MB; a longer one is a file of another kind."""

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as it stands in the file. `line` counts from 1; in an array it is where the element begins."""

    line: int
    text: str


class _Hashing(RawIOBase):
    """A binary file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.digest.update(data)
        return len(data)


class RecordFile:
    """An open file of records. Use as a context manager; iterate once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0
        """Number of the line read last."""

    def __enter__(self) -> RecordFile:
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise ImportFileError(f"{self.path}: {error.strerror}.") from None
        self._hashing = _Hashing(self._file)
        raw = BufferedReader(self._hashing, CHUNK_BYTES)
        try:
            self._zipped = check_kind(self.path, raw.peek(HEAD_BYTES)[:HEAD_BYTES])
        except OSError as error:
            self._file.close()
            raise ImportFileError(f"{self.path}: {error.strerror}.") from None
        except ImportFileError:
            self._file.close()
            raise
        self._stream: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if self._zipped else raw
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def share_read(self) -> float:
        """How much of the file was read, 0 to 1; of a pipe, whose length nobody knows, 0."""
        size = os.fstat(self._file.fileno()).st_size
        return min(1.0, self._file.tell() / size) if size else 0.0

    def digest(self) -> str:
        """SHA-256 (hex) of the file as it lies on disk; reads what has not been read yet."""
        while self._hashing.read(CHUNK_BYTES):
            pass
        return self._hashing.digest.hexdigest()

    def __iter__(self) -> Iterator[RawRecord]:
        try:
            yield from self._records()
        except EOFError:
            raise self._error("the gzip data ends too early; the file is truncated. Fetch it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self._error(f"the gzip data is damaged ({error}). Fetch the file again") from None

    def _records(self) -> Iterator[RawRecord]:
        first = True
        if self._zipped:
            # What is inside may be an archive again.
            refuse_kind(self.path, self._stream.peek(HEAD_BYTES)[:HEAD_BYTES])  # type: ignore[attr-defined]
        while line := self._stream.readline(MAX_RECORD_BYTES + 1):
            self.line += 1
            if first and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            if first and line.lstrip()[:1] == b"[":
                yield from self._array(line)
                return
            if len(line) > MAX_RECORD_BYTES:
                raise self._error(
                    f"the line is longer than {MAX_RECORD_BYTES >> 20} MiB; expected one JSON object per line"
                )
            text = self._decode(line)
            if text.isspace() or not text:
                continue
            first = False
            yield RawRecord(self.line, text.rstrip("\r\n"))

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._not_utf8(error) from None

    def _array(self, head: bytes) -> Iterator[RawRecord]:
        """The elements of one JSON array, each decoded as soon as it is complete.

        1. Have enough characters. 2. Skip white space. 3. Take punctuation. 4. Take an element.
        """
        decoder = json.JSONDecoder()
        chunks = self._chunks(head)
        buffer, position, need, at_end = "", 0, 1, False
        expected = "["
        self.line = 1
        while True:
            while len(buffer) - position < need and not at_end:
                text, at_end = chunks.send((buffer, position)) if buffer else next(chunks)
                buffer, position = buffer[position:] + text, 0
            while position < len(buffer) and buffer[position] in " \t\r\n":
                self.line += buffer[position] == "\n"
                position += 1
            need = 1
            if position == len(buffer):
                if not at_end:
                    continue
                if expected == "end":
                    return
                raise self._error("the JSON array is not closed; the file is truncated. Fetch it again")
            if (follows := self._punctuation(buffer[position], expected)) is not None:
                position, expected = position + 1, follows
                continue
            try:
                _, end = decoder.raw_decode(buffer, position)
            except (ValueError, RecursionError) as error:
                if at_end or len(buffer) - position > MAX_RECORD_BYTES:
                    raise self._error(
                        f"an element of the JSON array is broken or longer than {MAX_RECORD_BYTES >> 20} MiB ({error})"
                    ) from None
                # Twice as much each time, so that the work stays linear in the length of the element.
                need = 2 * (len(buffer) - position)
                continue
            element = buffer[position:end]
            yield RawRecord(self.line, element)
            self.line += element.count("\n")
            position, expected = end, ", or ]"

    def _punctuation(self, character: str, expected: str) -> str | None:
        """What may follow a punctuation character; None where an element begins here."""
        if expected == "[":
            return "element or ]"
        if expected == "end":
            raise self._error(f"found {character!r} after the end of the JSON array")
        if expected == ", or ]":
            if character not in ",]":
                raise self._error(f"found {character!r} in a JSON array; expected a comma or ]")
            return "element" if character == "," else "end"
        return "end" if character == "]" and expected == "element or ]" else None

    def _chunks(self, head: bytes) -> Generator[tuple[str, bool], tuple[str, int] | None, None]:
        """Text of the stream from `head` on, with a flag at its end; is told what has not been consumed."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        data, rest = head, None
        while True:
            at_end = not data
            try:
                text = decoder.decode(data, at_end)
            except UnicodeDecodeError as error:
                if rest is not None:
                    self.line += rest[0].count("\n", rest[1])
                self.line += error.object.count(b"\n", 0, error.start)
                raise self._not_utf8(error) from None
            rest = yield text, at_end
            data = self._stream.read(CHUNK_BYTES)

    def _not_utf8(self, error: UnicodeDecodeError) -> ImportFileError:
        return self._error(f"byte {error.object[error.start]:#04x} is not UTF-8; expected UTF-8 text. Convert the file")

    def _error(self, what: str) -> ImportFileError:
        return ImportFileError(f"{self.path}, line {max(self.line, 1)}: {what}. Nothing of this file was imported.")


HEAD_BYTES = 512
"""What a file is, is seen by so many of its first bytes."""

_UNPACK = "Unpack it with `{}` and give the file that comes out."
# Pattern of the first bytes, what such a file is, what to do.
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), kind, advice)
    for pattern, kind, advice in (
        (
            rb"PAR1[\x00-\x19]",
            "a Parquet file",
            "Convert it: python -c \"import pandas; pandas.read_parquet('FILE')"
            ".to_json('FILE.jsonl', orient='records', lines=True)\".",
        ),
        (rb"ARROW1|\xff\xff\xff\xff..\x00\x00", "an Arrow file", "Convert it with datasets: to_json('FILE.jsonl')."),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive", _UNPACK.format("unzip")),
        (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzip2 data", _UNPACK.format("bunzip2")),
        (rb"\xfd7zXZ\x00", "xz data", _UNPACK.format("unxz")),
        (rb"\x28\xb5\x2f\xfd", "Zstandard data", _UNPACK.format("unzstd")),
        (rb"\x04\x22\x4d\x18", "LZ4 data", _UNPACK.format("unlz4")),
        (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK.format("7z x")),
        (rb".{257}ustar", "a tar archive", _UNPACK.format("tar xf")),
        (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK.format("unrar x")),
        (rb"SQLite format 3\x00", "an SQLite database", "Export its table as JSON Lines."),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", "Export its table as JSON Lines."),
        (rb"%PDF-", "a PDF", "Give the text or the records themselves."),
        (
            rb"version https://git-lfs\.github\.com/",
            "a pointer of git-lfs and not the file itself",
            "Fetch the file with `git lfs pull`, or from where the set is published.",
        ),
        (
            rb"(\.\./)*\.git/annex/objects/|/annex/objects/",
            "a pointer of git-annex and not the file itself",
            "Fetch the file with `git annex get`.",
        ),
        (
            rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html[\s>]|head[\s>])",
            "an HTML page",
            "A download gave a page about the file, or a log-in, in place of the file: fetch the raw file "
            "(on the Hugging Face hub resolve/main in place of blob/main).",
        ),
    )
)


def refuse_kind(path: Path, head: bytes) -> None:
    """Name a file whose content is of a kind that is not read here, by its first `HEAD_BYTES`.

    Raises:
        ImportFileError: it is; says what it is and what to do.
    """
    for pattern, kind, advice in _KINDS:
        if pattern.match(head) and not (kind == "an HTML page" and path.suffix.lower() in (".html", ".htm")):
            said = advice.replace("FILE", str(path))
            raise ImportFileError(f"{path} is {kind}; expected text: JSON Lines, JSON, or as gzip. {said}")


def check_kind(path: Path, head: bytes) -> bool:
    """Whether a file is gzip data, by its first `HEAD_BYTES`; its name may leave that out, but must not claim it.

    Raises:
        ImportFileError: the content is of a kind that is not read here, or the name ends in .gz and the content is
            something else.
    """
    refuse_kind(path, head)
    zipped = head[:2] == b"\x1f\x8b"
    if not zipped and path.suffix == ".gz":
        found = "is empty" if not head else f"begins with {head[:2]!r}"
        raise ImportFileError(
            f"{path} is named .gz but is no gzip data: it {found}. Fetch it again, or rename it if it is plain."
        )
    return zipped


def check_openable(paths: Iterable[Path]) -> None:
    """See that every file is there, before anything else is looked for.

    Raises:
        ImportFileError: the first that can't be opened, or is of a kind that is not read.
    """
    for path in paths:
        with RecordFile(path):
            pass
