"""Promotions that wait for a person: asking for the decision, taking it exactly once, and what becomes of time.

A decision that answers an approval is a row of `decisions`; what follows from it (the promotion, the report, the end of
the cycle) is done by a flow, `flows/deciding.py`, or by the cycle's next run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import CycleError
from orchestrator.store.acts import TIMEOUT, Actor, reason_of, said_of

Answer = Literal["promote", "refuse"]
DONE: dict[str, str] = {"promote": "promoted", "refuse": "refused"}
NOBODY_DECIDED = "nobody decided"


@dataclass(frozen=True)
class Waiting:
    """A promotion that nobody has decided about yet."""

    approval_id: int
    cycle_id: int
    cycle: int
    """Its number."""
    snapshot_id: int
    digest: str
    why: str
    """Why a person is asked."""
    reasons: Sequence[Mapping[str, object]]
    """The gates' verdicts: `gate`, `passed`, `reason`."""
    evidence: Mapping[str, object]
    since: datetime
    expires_at: datetime


def hold_for_decision(
    session: Session,
    cycle_id: int,
    snapshot_id: int,
    why: str,
    reasons: Sequence[Mapping[str, object]],
    evidence: Mapping[str, object],
    timeout: timedelta,
) -> t.Approval:
    """Ask people whether the snapshot shall go live; asked again, the first question stands.

    `reasons` and `evidence` are what the decision would have been made on, as they stand on decisions.
    """
    earlier = session.scalars(
        select(t.Approval).where(t.Approval.cycle_id == cycle_id, t.Approval.snapshot_id == snapshot_id)
    ).one_or_none()
    if earlier is not None:
        return earlier
    approval = t.Approval(
        cycle_id=cycle_id,
        snapshot_id=snapshot_id,
        why=why,
        reasons=reasons,
        evidence=evidence,
        expires_at=datetime.now(UTC) + timeout,
    )
    session.add(approval)
    session.flush()
    return approval


def waiting(session: Session) -> list[Waiting]:
    """What waits for a decision; at most one, as one cycle is open at a time."""
    rows = session.execute(
        select(t.Approval, t.Cycle.number, t.Artifact.digest)
        .join(t.Cycle, t.Cycle.id == t.Approval.cycle_id)
        .join(t.Artifact, t.Artifact.id == t.Approval.snapshot_id)
        .where(t.Cycle.state == "open", ~exists().where(t.Decision.approval_id == t.Approval.id))
        .order_by(t.Approval.id)
    )
    return [
        Waiting(
            one.id,
            one.cycle_id,
            number,
            one.snapshot_id,
            digest,
            one.why,
            one.reasons,
            one.evidence,
            one.created_at,
            one.expires_at,
        )
        for one, number, digest in rows
    ]


def decide(session: Session, cycle: int, answer: Answer, actor: Actor, why: str) -> t.Decision:
    """Take a person's decision about the cycle with this number, in the caller's transaction.

    Raises:
        CycleError: nothing waits there, or somebody has decided already; it says who, and what.
        Unsaid: no reason is given.
    """
    return _answer(session, _approval_to_answer(session, cycle), answer, actor, reason_of(why))


def expire(session: Session, now: datetime | None = None) -> list[Waiting]:
    """Refuse what waited too long, in the name of nobody; returns it."""
    now = now or datetime.now(UTC)
    over = [one for one in waiting(session) if one.expires_at <= now]
    refused = []
    for one in over:
        approval = session.get_one(t.Approval, one.approval_id)
        # It may have been given up since it was read.
        still_open = _lock(session, approval.cycle_id).state == "open"
        if still_open and _decision(session, approval.id) is None:
            _answer(session, approval, "refuse", TIMEOUT, f"{NOBODY_DECIDED} until {one.expires_at:%Y-%m-%d %H:%M} UTC")
            refused.append(one)
    return refused


def decided_and_open(session: Session) -> list[int]:
    """Cycles, by id, that somebody has decided about, and whose run ended before that: they are to be finished."""
    return list(
        session.scalars(
            select(t.Cycle.id)
            .join(t.Approval, t.Approval.cycle_id == t.Cycle.id)
            .join(t.Decision, t.Decision.approval_id == t.Approval.id)
            .where(t.Cycle.state == "open")
            .order_by(t.Cycle.id)
        )
    )


def _approval_to_answer(session: Session, cycle: int) -> t.Approval:
    row = session.execute(select(t.Cycle.id).where(t.Cycle.number == cycle)).scalar_one_or_none()
    if row is None:
        raise CycleError(f"There is no cycle {cycle}. `orchestrator cycle list` shows those there are.")
    found = _lock(session, row)
    approval = session.scalars(
        select(t.Approval).where(t.Approval.cycle_id == row).order_by(t.Approval.id.desc()).limit(1)
    ).first()
    if approval is None:
        raise CycleError(f"Cycle {cycle} asks nobody for a decision: it is {found.state}.")
    decided = _decision(session, approval.id)
    if decided is not None:
        raise CycleError(f"Cycle {cycle} has been decided already: {decision_said(decided)}.")
    if found.state != "open":
        raise CycleError(f"Cycle {cycle} is {found.state}; only an open cycle can be decided about.")
    return approval


def _lock(session: Session, cycle_id: int) -> t.Cycle:
    """The cycle's row, held until the transaction ends: of two who decide at once the second sees the first."""
    return session.execute(select(t.Cycle).where(t.Cycle.id == cycle_id).with_for_update()).scalar_one()


def _decision(session: Session, approval_id: int) -> t.Decision | None:
    return session.scalars(select(t.Decision).where(t.Decision.approval_id == approval_id)).one_or_none()


def _answer(session: Session, approval: t.Approval, answer: Answer, actor: Actor, why: str) -> t.Decision:
    decision = t.Decision(
        cycle_id=approval.cycle_id,
        snapshot_id=approval.snapshot_id,
        decision=answer,
        reasons=approval.reasons,
        evidence=approval.evidence,
        decided_by=actor.name,
        identity=actor.identity,
        via=actor.via,
        note=why,
        approval_id=approval.id,
    )
    session.add(decision)
    session.flush()
    return decision


def decision_said(decision: t.Decision) -> str:
    """A decision about a cycle in a sentence without its full stop: who, what, when and why."""
    who = said_of(decision.decided_by, decision.identity)
    why = f": {decision.note.rstrip('.')}" if decision.note else ""
    return f"{who} {DONE[decision.decision]} it at {decision.created_at:%Y-%m-%d %H:%M} UTC{why}"
