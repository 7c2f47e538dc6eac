"""A stage that meets a full disk, its own or the database's, ends in one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import parse_config
from orchestrator.cycles.record import open_cycle
from orchestrator.errors import DiskFull
from orchestrator.instance.disks import as_disk_full
from orchestrator.stages.context import StageContext, build


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the disk that is always full is Linux's")
def test_a_stage_that_cannot_write_says_so_in_its_row_and_in_its_error(
    home: Path, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    cycle_id = open_cycle(parse_config({"name": "small", "initial_policy": {"path": "/no/such"}}))

    def write(out: Path) -> dict[str, Any]:
        with Path("/dev/full").open("w") as file:
            file.write("text")
        return {}

    with pytest.raises(DiskFull) as full, StageContext(cycle_id, "build_prompts") as context:
        build(context, "prompt_set", {}, {}, write)
    said = str(full.value)
    assert said.startswith(f"The disk of {home} is full: ")
    assert said.endswith(
        "and a file could not be written. Make about 1.1 GB free there, then run the cycle again; it goes on where it "
        "stopped."
    )
    # One line, without the error that it came of.
    assert full.value.__suppress_context__
    with Session(engine) as session:
        assert session.scalars(select(t.Stage.error)).one() == f"DiskFull: {said}"


def test_a_full_disk_is_seen_behind_the_errors_of_libraries_and_of_the_database(tmp_path: Path) -> None:
    class Full(psycopg2.OperationalError):
        pgcode = "53100"

    of_database = OperationalError(
        "insert", {}, Full('could not extend file "base/5/1": No space left on device\nHINT')
    )
    assert str(as_disk_full(of_database, tmp_path)) == (
        'The database\'s disk is full (could not extend file "base/5/1": No space left on device HINT). Make room '
        "there, then run the cycle again."
    )
    wrapped = RuntimeError("failed writing file")
    wrapped.__cause__ = OSError(28, "No space left on device", str(tmp_path / "no" / "model.bin"))
    assert str(as_disk_full(wrapped, Path("/"))).startswith(f"The disk of {tmp_path}/no/model.bin is full: ")
    assert as_disk_full(OSError(13, "Permission denied"), tmp_path) is None
    assert as_disk_full(None, tmp_path) is None
