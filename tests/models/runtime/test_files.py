"""A file in two places is one file where the file system can do that, and the same bytes where it can't."""

from __future__ import annotations

from pathlib import Path

from models.runtime.files import link_or_copy


def test_a_file_gets_a_second_name(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    link_or_copy(tmp_path / "weights", tmp_path / "again")
    assert (tmp_path / "again").samefile(tmp_path / "weights")


def test_a_file_of_another_file_system_is_copied(tmp_path: Path) -> None:
    elsewhere = Path("/proc/version")
    link_or_copy(elsewhere, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == elsewhere.read_bytes() != b""
    assert not (tmp_path / "copy").samefile(elsewhere)
