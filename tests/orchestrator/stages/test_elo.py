"""What people said reaches the reports: when it is measured beside the cycles, and whose report is out of date."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.stages.elo import LONGEST_WAIT, PAUSE, _is_due, outdated_reports
from tests.db.rows import add_artifact, add_comparison, add_cycle

MINUTE = timedelta(minutes=1)


def judged(session: Session) -> tuple[t.Cycle, t.Artifact, t.Artifact]:
    """A cycle that ended with a decision, its snapshot, and the initial policy."""
    cycle, snapshot, initial = add_cycle(session), add_artifact(session), add_artifact(session, "initial_policy")
    session.add(
        t.Decision(cycle_id=cycle.id, snapshot_id=snapshot.id, decision="promote", reasons=[], evidence={},
                   decided_by="gates")
    )  # fmt: skip
    cycle.state, cycle.ended_at = "promoted", datetime.now(UTC) - timedelta(days=1)
    session.flush()
    return cycle, snapshot, initial


def compare(session: Session, one: t.Artifact, other: t.Artifact, ago: timedelta, **fields: object) -> None:
    policies = {"a_snapshot_id": one.id, "b_snapshot_id": other.id, "question": "helpful", "purpose": "evaluation"}
    add_comparison(session, f"said {ago} ago", pair_fields=policies, created_at=datetime.now(UTC) - ago, **fields)


def measured(session: Session, cycle: t.Cycle, snapshot: t.Artifact, ago: timedelta) -> None:
    moment = datetime.now(UTC) - ago
    session.add(t.Evaluation(cycle_id=cycle.id, subject_id=snapshot.id, kind="elo", numbers={}, created_at=moment))
    session.flush()


def reported(session: Session, cycle: t.Cycle, ago: timedelta, state: str = "done") -> None:
    moment = datetime.now(UTC) - ago
    session.add(t.Stage(cycle_id=cycle.id, name="write_report", state=state, started_at=moment, ended_at=moment))
    session.flush()


def due(session: Session) -> bool:
    return _is_due(session, datetime.now(UTC))


def test_what_people_say_is_measured_when_they_pause(session: Session) -> None:
    _, snapshot, initial = judged(session)
    assert not due(session)
    compare(session, snapshot, initial, PAUSE + MINUTE)
    assert due(session)
    measured(session, *judged_of(session, snapshot), timedelta(0))
    assert not due(session)


def test_while_they_go_on_it_is_measured_once_an_hour(session: Session) -> None:
    cycle, snapshot, initial = judged(session)
    measured(session, cycle, snapshot, LONGEST_WAIT - MINUTE)
    compare(session, snapshot, initial, MINUTE)
    assert not due(session)
    assert _is_due(session, datetime.now(UTC) + 2 * MINUTE)


@pytest.mark.parametrize("fields", [{"side": "none", "reason": "cant_tell"}, {}])
def test_what_says_nothing_of_a_snapshot_is_no_reason_to_measure(session: Session, fields: dict[str, str]) -> None:
    _, snapshot, initial = judged(session)
    one = snapshot if fields else add_artifact(session)
    compare(session, one, initial, timedelta(hours=2), **fields)
    assert not due(session)


def test_a_report_from_before_its_elo_is_out_of_date_until_it_is_tried_again(session: Session) -> None:
    first, snapshot, _ = judged(session)
    last, _, _ = judged(session)
    cancelled = add_cycle(session, "cancelled")
    for cycle in (first, last):
        reported(session, cycle, timedelta(hours=5))
    assert outdated_reports(session) == []
    measured(session, first, snapshot, timedelta(hours=4))
    measured(session, cancelled, snapshot, timedelta(hours=4))
    # The last one's picture shows the first one's Elo; the cancelled cycle has no report.
    assert outdated_reports(session) == [first.id, last.id]
    reported(session, first, timedelta(hours=3), "failed")
    assert outdated_reports(session) == [last.id]
    reported(session, last, timedelta(hours=3))
    assert outdated_reports(session) == []


def judged_of(session: Session, snapshot: t.Artifact) -> tuple[t.Cycle, t.Artifact]:
    decision = session.query(t.Decision).filter_by(snapshot_id=snapshot.id).one()
    assert decision.cycle_id is not None
    return session.get_one(t.Cycle, decision.cycle_id), snapshot
