"""The rows of attempts at stages: who ends whose."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine
from orchestrator.stages.context import StageContext
from tests.db.rows import add_artifact, add_cycle

CONFIG = {"initial_policy": {"path": "x"}}


@pytest.fixture
def cycle(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """An open cycle, and an artifact that stages may end with."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    engine = make_engine(database_url)
    with Session(engine) as session, session.begin():
        ids = add_cycle(session, config=CONFIG).id, add_artifact(session).id
    engine.dispose()
    return ids


def states(database_url: str) -> list[str]:
    engine = make_engine(database_url)
    with Session(engine) as session:
        found = list(session.scalars(select(t.Stage.state).order_by(t.Stage.id)))
    engine.dispose()
    return found


def begin(cycle_id: int, fingerprint: str | None) -> StageContext:
    """A stage at work on what has this fingerprint."""
    context = StageContext(cycle_id, "evaluate_policy").__enter__()
    if fingerprint is not None:
        context.working_on(fingerprint)
    return context


def end(context: StageContext, artifact_id: int, fingerprint: str) -> None:
    context.built(artifact_id, fingerprint, found=False)
    context.__exit__(None, None, None)


def test_two_policies_that_are_scored_at_once_don_t_end_each_other(database_url: str, cycle: tuple[int, int]) -> None:
    cycle_id, artifact_id = cycle
    first, second, third = begin(cycle_id, "f1"), begin(cycle_id, "f2"), begin(cycle_id, None)
    end(second, artifact_id, "f2")
    assert states(database_url) == ["running", "done", "running"]
    end(third, artifact_id, "f3")
    end(first, artifact_id, "f1")
    assert states(database_url) == ["done", "done", "done"]


def test_one_that_ended_well_says_of_those_before_it_that_they_were_killed(
    database_url: str, cycle: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle_id, artifact_id = cycle
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "one")
    begin(cycle_id, "f1")._exits.close()  # the process dies, and with it what it held
    begin(cycle_id, None)._exits.close()
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "two")
    begun = begin(cycle_id, None)  # of this run, and about to begin
    end(begin(cycle_id, "f1"), artifact_id, "f1")
    assert states(database_url) == ["failed", "failed", "running", "done"]
    end(begun, artifact_id, "f2")
    assert states(database_url) == ["failed", "failed", "done", "done"]
