"""What a worker tells the database of its job: where it is, and each line that it measured once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.stages import job_progress
from orchestrator.stages.job_progress import JobProgress
from tests.db.rows import add_cycle


@pytest.fixture
def stage_id(engine: Engine) -> int:
    with Session(engine) as session:
        stage = t.Stage(cycle_id=add_cycle(session).id, name="train_policy")
        session.add(stage)
        session.commit()
        return stage.id


@pytest.fixture(autouse=True)
def _without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_progress, "EVERY_S", 0.0)


def at(work: Path, step: int, eta_s: float | None = None) -> None:
    (work / "progress.json").write_text(json.dumps({"step": step, "steps": 9, "eta_s": eta_s, "phase": "iteration"}))


def measured(work: Path, *lines: str) -> None:
    with (work / "metrics.jsonl").open("a") as file:
        file.writelines(lines)


def told(engine: Engine) -> tuple[list[Any], list[Any]]:
    with Session(engine) as session:
        progress = session.execute(select(t.StageProgress.phase, t.StageProgress.step, t.StageProgress.eta_s))
        metrics = session.execute(select(t.StageMetrics.line, t.StageMetrics.numbers).order_by(t.StageMetrics.line))
        return [tuple(row) for row in progress], [tuple(row) for row in metrics]


def test_each_line_is_told_once_and_progress_is_the_newest(engine: Engine, stage_id: int, tmp_path: Path) -> None:
    progress = JobProgress(engine, stage_id, tmp_path)
    progress.tell()
    assert told(engine) == ([], [])
    at(tmp_path, 1)
    # The second line is half written.
    measured(tmp_path, '{"step": 1, "objective/kl": 0.5}\n', '{"step": 2, "obj')
    progress.tell()
    first = (0, {"step": 1, "objective/kl": 0.5})
    assert told(engine) == ([("iteration", 1, None)], [first])
    measured(tmp_path, 'ective/kl": null}\n')
    at(tmp_path, 2, 3.5)
    progress.tell()
    progress.tell()
    assert told(engine) == ([("iteration", 2, 3.5)], [first, (1, {"step": 2, "objective/kl": None})])


def test_what_an_earlier_attempt_measured_beyond_its_checkpoint_is_not_told(
    engine: Engine, stage_id: int, tmp_path: Path
) -> None:
    at(tmp_path, 3)
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "progress.json", (an_hour_ago, an_hour_ago))
    measured(tmp_path, '{"step": 1}\n', '{"step": 2}\n')
    progress = JobProgress(engine, stage_id, tmp_path)
    progress.tell()
    assert told(engine) == ([], [])
    # The job goes on from step 1: it cuts, then says so.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    at(tmp_path, 1)
    progress.tell()
    assert told(engine) == ([("iteration", 1, None)], [(0, {"step": 1})])


def test_a_job_outlives_a_database_that_is_away(engine: Engine, stage_id: int, tmp_path: Path) -> None:
    from db.session import make_engine

    away = make_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none")
    progress = JobProgress(away, stage_id, tmp_path)
    at(tmp_path, 1)
    progress.tell()
    progress.tell(last=True)
    away.dispose()


def test_a_job_outlives_a_line_that_can_t_be_read(engine: Engine, stage_id: int, tmp_path: Path) -> None:
    progress = JobProgress(engine, stage_id, tmp_path)
    at(tmp_path, 1)
    measured(tmp_path, '{"step": 1}\n', "no JSON\n")
    progress.tell()
    measured(tmp_path, '{"step": NaN}\n')
    progress.tell(last=True)


def test_between_two_looks_two_seconds_pass_but_the_last_word_comes_at_once(
    engine: Engine, stage_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_progress, "EVERY_S", 3600.0)
    one = JobProgress(engine, stage_id, tmp_path)
    one.tell()
    at(tmp_path, 9)
    one.tell()
    assert told(engine)[0] == []
    one.tell(last=True)
    assert told(engine)[0] == [("iteration", 9, None)]
