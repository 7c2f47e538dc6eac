"""What a person is told while a cycle runs: each stage and each job by its own name, wherever it runs."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine
from orchestrator.cycles.runs import Progress, how_far
from tests.db.rows import add_cycle


def at(session: Session, stage: t.Stage, step: int, steps: int, eta_s: float | None = None) -> None:
    session.merge(t.StageProgress(stage_id=stage.id, phase="train", step=step, steps=steps, eta_s=eta_s))
    session.commit()


def test_stages_at_the_same_time_are_told_apart(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    engine = make_engine(database_url)
    with Session(engine, expire_on_commit=False) as session:
        cycle_id = add_cycle(session).id
        session.add(t.Stage(cycle_id=cycle_id, name="before", state="running"))
        session.commit()
        progress = Progress()
        assert progress.news() == []
        ppo = t.Stage(cycle_id=cycle_id, name="train_policy", fingerprint="f1")
        score = t.Stage(cycle_id=cycle_id, name="evaluate_policy", fingerprint="f2")
        session.add_all([ppo, score])
        session.commit()
        assert progress.news() == ["train_policy …", "evaluate_policy …"]
        assert progress.news() == []

        at(session, ppo, 3, 10, 7.2)
        at(session, score, 1, 2)
        assert progress.news() == ["train_policy: train 3 of 10, 7 s left", "evaluate_policy: train 1 of 2"]
        assert progress.news() == []

        ppo.state, ppo.error, ppo.ended_at = "failed", "no memory", datetime.now(UTC)
        late = t.Stage(cycle_id=cycle_id, name="decide_promotion", state="found", ended_at=datetime.now(UTC))
        session.add(late)
        session.commit()
        first, second = progress.news()
        assert first.startswith("train_policy failed: no memory (")
        assert second.startswith("decide_promotion found, not repeated (")
        # The other one goes on.
        at(session, score, 2, 2)
        assert progress.news() == ["evaluate_policy: train 2 of 2"]
    engine.dispose()


@pytest.mark.parametrize(
    ("steps", "eta_s", "words"),
    [
        (None, None, "step 3"),
        (40, 99.4, "step 3 of 40, 99 s left"),
        (40, 150.0, "step 3 of 40, 2 min left"),  # 2.5, to the even one
        (40, 99 * 60.0, "step 3 of 40, 99 min left"),
        (40, 26 * 3600 + 120.0, "step 3 of 40, 26 h 2 min left"),
    ],
)
def test_how_long_it_still_takes_is_in_words(steps: int | None, eta_s: float | None, words: str) -> None:
    assert how_far(t.StageProgress(phase="step", step=3, steps=steps, eta_s=eta_s)) == words
