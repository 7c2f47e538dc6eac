"""Promotions that wait for a person: decided exactly once, by whom, and by nobody when the time is over."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from db import tables as t
from db.errors import AlreadyDecided, translate
from db.session import transaction
from orchestrator.errors import CycleError
from orchestrator.store.acts import Actor, Unsaid, claimed
from orchestrator.store.approvals import decide, decided_and_open, expire, hold_for_decision, waiting
from tests.db.rows import add_artifact, add_cycle

ADA = Actor("Ada", "proven", "desk")
BOB = claimed(" Bob  Ray ")
VERDICTS = [{"gate": "kl", "passed": True, "reason": "KL is 3 nats"}]


def ask(session: Session, hours: float = 48) -> t.Cycle:
    """An open cycle that waits."""
    cycle = add_cycle(session)
    snapshot = add_artifact(session)
    hold_for_decision(session, cycle.id, snapshot.id, "it is to be", VERDICTS, {"kl_nats": 3.0}, timedelta(hours=hours))
    return cycle


def test_a_decision_keeps_who_how_known_why_and_the_evidence(session: Session) -> None:
    cycle = ask(session)
    [one] = waiting(session)
    assert (one.cycle, one.why, one.reasons) == (cycle.number, "it is to be", VERDICTS)
    assert one.expires_at - one.since == pytest.approx(timedelta(hours=48), abs=timedelta(seconds=5))
    decision = decide(session, cycle.number, "refuse", BOB, " too short answers \n")
    assert (decision.decided_by, decision.identity, decision.via) == ("Bob Ray", "claimed", "prefect")
    assert (decision.decision, decision.note, decision.kind) == ("refuse", "too short answers", "cycle")
    assert (decision.reasons, decision.evidence) == (VERDICTS, {"kl_nats": 3.0})
    assert waiting(session) == []
    assert decided_and_open(session) == [cycle.id]


def test_asked_again_the_first_question_stands(session: Session) -> None:
    cycle = ask(session)
    [one] = waiting(session)
    again = hold_for_decision(session, cycle.id, one.snapshot_id, "other", [], {}, timedelta(hours=1))
    assert (again.id, again.why) == (one.approval_id, "it is to be")


def test_what_can_t_be_decided_says_why(session: Session) -> None:
    with pytest.raises(CycleError, match="There is no cycle 99999"):
        decide(session, 99999, "promote", ADA, "good")
    cycle = ask(session)
    for nothing in ("", " \n"):
        with pytest.raises(Unsaid, match="No reason was given"):
            decide(session, cycle.number, "promote", ADA, nothing)
    decide(session, cycle.number, "promote", ADA, "good.")
    told = rf"Cycle {cycle.number} has been decided already: Ada \(proven by a token\) promoted it at .* UTC: good\."
    with pytest.raises(CycleError, match=told):
        decide(session, cycle.number, "refuse", BOB, "bad")
    cycle.state, cycle.ended_at = "promoted", datetime.now(UTC)
    session.flush()
    unasked = add_cycle(session)
    with pytest.raises(CycleError, match=rf"Cycle {unasked.number} asks nobody for a decision: it is open"):
        decide(session, unasked.number, "refuse", BOB, "bad")


def test_a_cancelled_cycle_waits_for_nobody(session: Session) -> None:
    cycle = ask(session, hours=-1)
    cycle.state, cycle.ended_at = "cancelled", datetime.now(UTC)
    session.flush()
    assert (waiting(session), expire(session)) == ([], [])
    with pytest.raises(CycleError, match="is cancelled; only an open cycle can be decided about"):
        decide(session, cycle.number, "promote", ADA, "good")


def test_of_two_who_decide_at_once_one_wins_and_the_other_is_told_who(engine: Engine) -> None:
    with transaction(engine) as session:
        number = ask(session).number
    ready = threading.Barrier(8)
    told: list[str] = []

    def try_it(name: str) -> None:
        ready.wait()
        try:
            with transaction(engine) as session:
                decide(session, number, "promote" if name < "e" else "refuse", Actor(name, "proven", "desk"), "because")
        except CycleError as error:
            told.append(str(error))

    threads = [threading.Thread(target=try_it, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with transaction(engine) as session:
        [decision] = session.scalars(select(t.Decision)).all()
    assert len(told) == 7
    assert all(f"decided already: {decision.decided_by} (proven" in line for line in told)


def test_the_database_itself_takes_one_decision_for_an_approval(session: Session) -> None:
    cycle = ask(session)
    [one] = waiting(session)
    decide(session, cycle.number, "promote", ADA, "good")
    second = t.Decision(
        cycle_id=cycle.id, snapshot_id=one.snapshot_id, decision="refuse", reasons=[], evidence={}, decided_by="x",
        approval_id=one.approval_id,
    )  # fmt: skip
    session.add(second)
    with pytest.raises(AlreadyDecided), translate():
        session.flush()


def test_what_nobody_decided_in_time_is_refused_in_nobody_s_name(session: Session) -> None:
    cycle = ask(session, hours=48)
    assert expire(session, datetime.now(UTC) + timedelta(hours=47)) == []
    [one] = expire(session, datetime.now(UTC) + timedelta(hours=49))
    assert one.cycle == cycle.number
    decision = session.scalars(select(t.Decision).where(t.Decision.cycle_id == cycle.id)).one()
    assert (decision.decision, decision.decided_by, decision.identity) == ("refuse", "timeout", "program")
    assert (decision.note or "").startswith("nobody decided until 2")
    assert expire(session, datetime.now(UTC) + timedelta(hours=50)) == []
    with pytest.raises(CycleError, match="nobody, in time refused it"):
        decide(session, cycle.number, "promote", ADA, "late")


def names() -> list[tuple[str, str]]:
    return [
        ("", "expected who you are"),
        ("x" * 101, "at most 100"),
        (" Gates ", "the program's own"),
        ("admin", "own"),
    ]


@pytest.mark.parametrize(("name", "why"), names())
def test_a_name_that_is_none_or_the_program_s_is_refused(name: str, why: str) -> None:
    with pytest.raises(Unsaid, match=why):
        claimed(name)
