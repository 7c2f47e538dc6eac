"""What is told of the loop: how far its jobs are, and why it stands still."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import parse_config
from orchestrator.cycles.presence import at_work
from orchestrator.cycles.record import open_cycle
from orchestrator.cycles.telling import loop_now
from orchestrator.store.live import in_a_line, loop_said
from tests.running import add_artifact, deploy


@pytest.fixture
def cycle_id(home: object, database_url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """An open cycle."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return open_cycle(parse_config({"name": "small", "initial_policy": {"path": "/no/such"}}))


def add_stage(engine: Engine, cycle_id: int, name: str, step: int) -> None:
    """A stage that its row calls running, 90 s from its end."""
    with Session(engine) as session, session.begin():
        stage = t.Stage(cycle_id=cycle_id, name=name, state="running")
        session.add(stage)
        session.flush()
        session.add(t.StageProgress(stage_id=stage.id, phase="ppo", step=step, steps=40, eta_s=90))


def test_how_far_the_jobs_at_work_are_stands_beside_the_open_cycle(cycle_id: int, engine: Engine) -> None:
    # The second was killed: its row says running, and nobody is at work on it.
    add_stage(engine, cycle_id, "train_policy", 3)
    add_stage(engine, cycle_id, "evaluate_policy", 1)
    with at_work(cycle_id, "cycle run"), at_work(cycle_id, "train_policy"), Session(engine) as session:
        said = dict(loop_said(loop_now(session)))
    assert said["How far"] == "train_policy: ppo 3 of 40, 90 s left"
    with Session(engine) as session:
        assert "How far" not in dict(loop_said(loop_now(session)))


def test_a_stage_s_error_is_told_in_words_without_the_name_of_a_class(cycle_id: int, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        error = "JobFailed: Job train_policy was ended by SIGTERM.\nTraceback …"
        now = datetime.now(UTC)
        session.add(t.Stage(cycle_id=cycle_id, name="train_policy", state="failed", error=error, ended_at=now))
    with Session(engine) as session:
        said = dict(loop_said(loop_now(session)))["Open cycle"]
    assert "stopped at train_policy: Job train_policy was ended by SIGTERM. No other cycle begins" in said


def test_a_list_of_artifacts_says_what_is_live(session: Session) -> None:
    assert in_a_line(loop_now(session)) == "Live: nothing yet. Open cycle: none."
    policy = add_artifact(session, "week 1")
    deploy(session, policy)
    assert in_a_line(loop_now(session)).startswith(f"Live: {policy.digest[:19]} (snapshot), since ")
