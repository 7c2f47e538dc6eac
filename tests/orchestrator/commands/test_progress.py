"""How far a long command is: silence while it is short, then the rest at the pace so far, on stderr alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from orchestrator.commands.progress import Progress
from orchestrator.data import importing
from orchestrator.data.importing import import_file


def test_a_line_every_ten_seconds_with_the_rest_at_the_pace_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    shares = {104.0: 0.1, 110.0: 0.0, 112.0: 0.25, 115.0: 0.4, 130.0: 0.5, 160.0: 1.0}
    times = iter([100.0, *shares])
    progress = Progress("a.jsonl", lambda: next(times))
    for share in shares.values():
        progress(share)
    printed = capsys.readouterr()
    assert printed.out == ""
    # A quarter in 12 s: three quarters in 36 s.
    assert printed.err.splitlines() == [
        "a.jsonl: 25%, about 36 s left",
        "a.jsonl: 50%, about 30 s left",
        "a.jsonl: 100%, being written to the database",
    ]


@pytest.mark.parametrize("zipped", [False, True])
def test_an_import_tells_how_much_of_the_file_it_has_read(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    import gzip

    monkeypatch.setattr(importing, "RECORDS_AT_ONCE", 100)
    lines = [
        json.dumps({"chosen": f"\n\nHuman: Say {i}.\n\nAssistant: {i}, {'so ' * 60}",
                    "rejected": f"\n\nHuman: Say {i}.\n\nAssistant: no {i}"})
        for i in range(1000)
    ]  # fmt: skip
    content = ("\n".join(lines) + "\n").encode()
    file = tmp_path / ("helpful.jsonl.gz" if zipped else "helpful.jsonl")
    file.write_bytes(gzip.compress(content) if zipped else content)
    told: list[float] = []
    engine = create_engine(database_url)
    with Session(engine) as session:
        report = import_file(session, file, importing.ImportRequest(question="helpful"), told.append)
    engine.dispose()
    assert report.imported == 1000
    assert len(told) == 11
    assert told == sorted(told)
    assert told[-1] == 1.0
    if not zipped:  # read in blocks of 64 KiB, of a file of 300 KB
        assert 0.1 < told[2] < 0.6
