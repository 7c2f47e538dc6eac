"""Files as streams of records, and what damaged files say."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
from pathlib import Path

import pytest

from orchestrator.data.formats.reading import CHUNK_BYTES, MAX_RECORD_BYTES, RecordFile
from orchestrator.errors import ImportFileError


def read(path: Path) -> list[tuple[int, str]]:
    with RecordFile(path) as file:
        return [(raw.line, raw.text) for raw in file]


def message(path: Path) -> str:
    with pytest.raises(ImportFileError) as error:
        read(path)
    return str(error.value)


@pytest.mark.parametrize("zipped", [False, True])
def test_lines_are_counted_and_blank_ones_skipped(tmp_path: Path, zipped: bool) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\n\n  \r\n{"b": "\xc3\xa9"}\r\n{"c": 3}'
    file = tmp_path / "records"
    file.write_bytes(gzip.compress(data) if zipped else data)
    assert read(file) == [(1, '{"a": 1}'), (4, '{"b": "é"}'), (5, '{"c": 3}')]


def test_a_line_separator_of_unicode_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.write_text('{"a": "x\u2028y\x85z"}\n{"b": 2}\n', encoding="utf-8", newline="")
    assert [line for line, _ in read(file)] == [1, 2]


def test_the_elements_of_an_array_carry_their_line(tmp_path: Path) -> None:
    elements = [{"text": "é" * 3, "n": n, "lines": ["]", ",", "[", '"']} for n in range(3)]
    file = tmp_path / "array.json"
    file.write_text(json.dumps(elements, indent=1, ensure_ascii=False), encoding="utf-8")
    found = read(file)
    assert [json.loads(text) for _, text in found] == elements
    # With indent=1 an element takes 9 lines: {, text, n, lines [, 4 entries, ], } is 10 with its brackets.
    assert [line for line, _ in found] == [2, 12, 22]
    file.write_text(" [ ]\n")
    assert read(file) == []


def test_array_elements_may_be_longer_than_a_chunk_and_cut_characters(tmp_path: Path) -> None:
    # An odd offset puts chunk borders inside the two bytes of é.
    elements = [{"text": "x" + "é" * CHUNK_BYTES}, {"text": "é" * 10}, {}]
    file = tmp_path / "array.json"
    file.write_text(json.dumps(elements, ensure_ascii=False), encoding="utf-8")
    assert [json.loads(text) for _, text in read(file)] == elements


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[{"a": 1},\n{"b": 2}', 2, "not closed"),
        ('[{"a": 1},\n{"b": ', 2, "element of the JSON array is broken"),
        ('[{"a": 1}\n{"b": 2}]', 2, "expected a comma"),
        ('[{"a": 1}]\n\nx', 3, "after the end"),
        ('[{"a": 1},\n]', 2, "broken"),
    ],
)
def test_a_broken_array_is_an_error_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    file = tmp_path / "array.json"
    file.write_text(text)
    found = message(file)
    assert f"{file}, line {line}: " in found
    assert says in found


def test_a_truncated_gzip_names_the_line_it_came_to(tmp_path: Path) -> None:
    data = "".join(json.dumps({"n": n, "text": str(n) * 50}) + "\n" for n in range(5000)).encode()
    file = tmp_path / "cut.jsonl.gz"
    file.write_bytes(gzip.compress(data)[:-40])
    found = message(file)
    assert str(file) in found
    assert "truncated" in found
    assert int(found.split("line ")[1].split(":")[0]) > 1


def test_a_damaged_gzip_is_an_error(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b'{"a": 1}\n' * 10))
    data[-6] ^= 0xFF  # inside the checksum
    file = tmp_path / "bad.gz"
    file.write_bytes(data)
    assert "damaged" in message(file)


KINDS = {
    "a Parquet file": (b"PAR1\x15\x04\x15\x10\x15\x14\x4c", "pandas.read_parquet"),
    "an Arrow file": (b"ARROW1\x00\x00", "to_json"),
    "a zip archive": (b"PK\x03\x04\x14\x00\x00\x00", "unzip"),
    "bzip2 data": (bz2.compress(b'{"a": 1}'), "bunzip2"),
    "xz data": (lzma.compress(b'{"a": 1}'), "unxz"),
    "Zstandard data": (b"\x28\xb5\x2f\xfd\x04\x58", "unzstd"),
    "a pointer of git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
        "git lfs pull",
    ),
    "a pointer of git-annex": (b"/annex/objects/SHA256E-s5--ab.jsonl\n", "git annex get"),
    "an HTML page": (b"\n <!doctype HTML>\n<html lang=en>", "resolve/main"),
    "a tar archive": (b"a.jsonl".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "tar xf"),
    "an SQLite database": (b"SQLite format 3\x00\x10\x00", "Export"),
    "a PDF": (b"%PDF-1.7\n", "text"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["records.jsonl", "records.jsonl.gz"])
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path: Path, kind: str, name: str) -> None:
    content, advice = KINDS[kind]
    file = tmp_path / name
    for data in (content, gzip.compress(content)):
        file.write_bytes(data)
        said = message(file)
        assert said.startswith(f"{file} is {kind}")
        assert "; expected text: JSON Lines, JSON, or as gzip. " in said
        assert advice in said


@pytest.mark.parametrize("text", ['{"a": "PAR1"}', '{"a": "<html>"}', '{"version": "https://git-lfs.github.com/"}'])
def test_records_that_speak_of_other_kinds_are_records(tmp_path: Path, text: str) -> None:
    file = tmp_path / "records"
    file.write_text(text)
    assert read(file) == [(1, text)]


def test_a_wrong_encoding_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.jsonl"
    file.write_bytes('{"a": "plain"}\n{"a": "caf\u00e9"}\n'.encode("latin-1"))
    assert f"{file}, line 2: byte 0xe9 is not UTF-8" in message(file)
    file.write_bytes('[{"a": "plain"},\n\n{"a": "caf\u00e9"}]\n'.encode("latin-1"))
    assert f"{file}, line 3: byte 0xe9 is not UTF-8" in message(file)
    file.write_text('{"a": 1}\n', encoding="utf-16")
    assert "line 1: byte 0xff is not UTF-8" in message(file)


def test_a_line_of_50_mb_is_an_error_and_not_held_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=1) as out:
        out.write(b'{"a": 1}\n{"text": "')
        for _ in range(50):
            out.write(b"x" * 2**20)
        out.write(b'"}\n')
    assert MAX_RECORD_BYTES == 16 * 2**20
    assert f"{file}, line 2: the line is longer than 16 MiB" in message(file)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "nothing.jsonl")
    assert "directory" in message(tmp_path)


def test_the_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.write_bytes(gzip.compress(b'{"a": 1}\n', mtime=0))
    with RecordFile(file) as opened:
        next(iter(opened))
        assert opened.digest() == hashlib.sha256(file.read_bytes()).hexdigest()
