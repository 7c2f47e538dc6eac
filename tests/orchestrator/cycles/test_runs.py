"""What a person is told while a cycle runs: each stage and each job by its own name."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine
from orchestrator.cycles.runs import Progress
from orchestrator.instance.training_jobs import fresh_name
from tests.db.rows import add_cycle


def write_progress(folder: Path, step: int, steps: int, eta_s: float | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "progress.json"
    file.write_text(json.dumps({"step": step, "steps": steps, "eta_s": eta_s, "phase": "train"}))
    return file


def test_stages_at_the_same_time_are_told_apart(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    engine = make_engine(database_url)
    work = home / "work"
    with Session(engine, expire_on_commit=False) as session:
        cycle_id = add_cycle(session).id
        session.add(t.Stage(cycle_id=cycle_id, name="before", state="running"))
        session.commit()
        progress = Progress(home)
        assert progress.news() == []
        ppo = t.Stage(cycle_id=cycle_id, name="train_policy", fingerprint="f1")
        score = t.Stage(cycle_id=cycle_id, name="evaluate_policy", fingerprint="f2")
        session.add_all([ppo, score])
        session.commit()
        assert progress.news() == ["train_policy …", "evaluate_policy …"]
        assert progress.news() == []

        write_progress(work / "f1", 3, 10, 7.2)
        write_progress(work / fresh_name("f2", cycle_id), 1, 2)
        write_progress(work / "another", 9, 10)
        assert progress.news() == ["train_policy: train 3 of 10, 7 s left", "evaluate_policy: train 1 of 2"]
        assert progress.news() == []

        # What an earlier attempt left is not the news of this one.
        os.utime(write_progress(work / "f1", 9, 10), (0, 0))
        ppo.state, ppo.error, ppo.ended_at = "failed", "no memory", datetime.now(UTC)
        late = t.Stage(cycle_id=cycle_id, name="decide_promotion", state="found", ended_at=datetime.now(UTC))
        session.add(late)
        session.commit()
        first, second = progress.news()
        assert first.startswith("train_policy failed: no memory (")
        assert second.startswith("decide_promotion found, not repeated (")
        # The other one goes on.
        write_progress(work / fresh_name("f2", cycle_id), 2, 2)
        assert progress.news() == ["evaluate_policy: train 2 of 2"]
    engine.dispose()
