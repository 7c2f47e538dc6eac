"""What answers raters: the live deployment, the pairing table, and the snapshots that must therefore be served.

Used by the stages, the policy server and the feedback app. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, func, select, text, true
from sqlalchemy.orm import Session, aliased

from db import tables as t


@dataclass(frozen=True)
class LiveDeployment:
    """The deployment that `policy-live` means now."""

    id: int
    snapshot_id: int
    digest: str
    kind: str
    """Kind of the artifact: `initial_policy` or `snapshot`."""
    cycle_id: int | None
    serving: dict[str, Any]
    """Section [serving] of the configuration of the cycle that deployed it; {} where no cycle did."""


@dataclass(frozen=True)
class ActivePairing:
    """Two contestants that meet in a task, drawn with this weight."""

    id: int
    task: str
    contestant_a_id: int
    contestant_b_id: int
    digest_a: str
    digest_b: str
    weight: float


_A, _B = aliased(t.Artifact), aliased(t.Artifact)

# Columns stand in the order of the dataclasses' fields. Statements are built once: building costs more than running.
_LIVE = (
    select(
        t.Deployment.id,
        t.Deployment.snapshot_id,
        t.Artifact.digest,
        t.Artifact.kind,
        t.Deployment.cycle_id,
        func.coalesce(t.Cycle.config["serving"], text("'{}'::jsonb")).label("serving"),
    )
    .join(t.Artifact, t.Artifact.id == t.Deployment.snapshot_id)
    .outerjoin(t.Cycle, t.Cycle.id == t.Deployment.cycle_id)
    .where(t.Deployment.ended_at.is_(None))
)
_PAIRINGS = (
    select(
        t.Pairing.id,
        t.Pairing.task,
        t.Pairing.contestant_a_id,
        t.Pairing.contestant_b_id,
        _A.digest.label("digest_a"),
        _B.digest.label("digest_b"),
        t.Pairing.weight,
    )
    .join(_A, _A.id == t.Pairing.contestant_a_id)
    .join(_B, _B.id == t.Pairing.contestant_b_id)
    .where(t.Pairing.ended_at.is_(None))
    .order_by(t.Pairing.id)
)
_LIVE_ROW = _LIVE.cte("live")
_TASK_PAIRINGS = _PAIRINGS.where(t.Pairing.task == bindparam("task")).subquery("pairings")
# The live deployment is a single row, so this is the list of pairings beside it, or it alone.
_CONTESTANTS = select(_LIVE_ROW, _TASK_PAIRINGS).join(_TASK_PAIRINGS, true(), isouter=True)


def live_deployment(session: Session) -> LiveDeployment | None:
    """The live deployment, or None before the first one."""
    row = session.execute(_LIVE).one_or_none()
    return LiveDeployment(*row) if row is not None else None


def contestants(session: Session, task: str) -> tuple[LiveDeployment | None, list[ActivePairing]]:
    """The live deployment and the active pairings of a task, in one query: every pair that is drawn asks for them."""
    rows = session.execute(_CONTESTANTS, {"task": task}).all()
    if not rows:
        return None, active_pairings(session, task)
    width = len(fields(LiveDeployment))
    return LiveDeployment(*rows[0][:width]), [ActivePairing(*row[width:]) for row in rows if row[width] is not None]


def deploy(session: Session, snapshot_id: int, decision_id: int, cycle_id: int | None = None) -> t.Deployment:
    """End what is live and begin a deployment of the snapshot, in the caller's transaction."""
    live = session.execute(
        select(t.Deployment).where(t.Deployment.ended_at.is_(None)).with_for_update()
    ).scalar_one_or_none()
    if live is not None:
        live.ended_at = datetime.now(UTC)
        # The unique index admits one row without an end: the old one must have it before the new one is there.
        session.flush()
    deployment = t.Deployment(snapshot_id=snapshot_id, decision_id=decision_id, cycle_id=cycle_id)
    session.add(deployment)
    session.flush()
    return deployment


def active_pairings(session: Session, task: str | None = None) -> list[ActivePairing]:
    """The rows of the pairing table in force, oldest first; of one task where it is given."""
    query = _PAIRINGS if task is None else _PAIRINGS.where(t.Pairing.task == task)
    return [ActivePairing(*row) for row in session.execute(query)]


def open_pairing(
    session: Session, task: str, a_id: int, b_id: int, cycle_id: int | None = None, weight: float = 1.0
) -> t.Pairing:
    """Let two contestants meet in a task from now on; one that is in force already is returned as it is."""
    kept = session.execute(
        select(t.Pairing)
        .where(
            t.Pairing.task == task,
            t.Pairing.contestant_a_id == a_id,
            t.Pairing.contestant_b_id == b_id,
            t.Pairing.cycle_id.is_not_distinct_from(cycle_id),
            t.Pairing.ended_at.is_(None),
        )
        .limit(1)
    ).scalar_one_or_none()
    if kept is not None:
        return kept
    pairing = t.Pairing(task=task, contestant_a_id=a_id, contestant_b_id=b_id, cycle_id=cycle_id, weight=weight)
    session.add(pairing)
    session.flush()
    return pairing


def end_pairing(session: Session, pairing_id: int) -> None:
    """Take a row of the pairing table out of force; what it brought stays."""
    pairing = session.get_one(t.Pairing, pairing_id, with_for_update=True)
    if pairing.ended_at is None:
        pairing.ended_at = datetime.now(UTC)
        session.flush()


def served_digests(session: Session) -> frozenset[str]:
    """Digests of every snapshot that raters may be given: the live one and the contestants of active pairings."""
    live = live_deployment(session)
    digests = {live.digest} if live else set()
    for pairing in active_pairings(session):
        digests |= {pairing.digest_a, pairing.digest_b}
    return frozenset(digests)


def policy_digests(session: Session, prefix: str) -> list[str]:
    """Up to two digests of policies (initial policies and snapshots) that begin with `prefix`."""
    return list(
        session.scalars(
            select(t.Artifact.digest)
            .where(
                t.Artifact.kind.in_(("initial_policy", "snapshot")),
                t.Artifact.digest.startswith(prefix, autoescape=True),
            )
            .distinct()
            .limit(2)
        )
    )
