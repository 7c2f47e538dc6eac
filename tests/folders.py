"""What a folder holds, to compare it with another."""

from __future__ import annotations

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its path inside the folder, which must be there: nothing would equal nothing."""
    assert folder.is_dir(), folder
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
