"""The policy that a cycle's snapshot has to stand beside: what was live when the snapshot was judged."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.database import database
from orchestrator.store import ledger
from orchestrator.store.deployments import live_deployment


def live_before(session: Session, cycle_id: int) -> int | None:
    """The policy that was live when the cycle judged its snapshot, or is live where it has not yet; None before one.

    Once a cycle has promoted, its own snapshot is live; what it replaced stands in the evidence.
    """
    for table in (t.Decision, t.Approval):
        evidence = session.scalars(
            select(table.evidence)
            .where(table.cycle_id == cycle_id, table.evidence.has_key("kl_nats"))
            .order_by(table.id.desc())
            .limit(1)
        ).first()
        if evidence is not None:
            return (evidence.get("live") or {}).get("id")
    live = live_deployment(session)
    return live.snapshot_id if live is not None else None


def live_to_score(cycle_id: int, initial_id: int, snapshot_id: int) -> int | None:
    """The live policy where it is neither of the two, and the cycle's preference model can score it."""
    with database() as session:
        live_id = live_before(session, cycle_id)
        if live_id is None or live_id in (initial_id, snapshot_id) or not scorable(session, live_id, initial_id):
            return None
        return live_id


def scorable(session: Session, policy_id: int, initial_id: int) -> bool:
    """Whether a policy is the initial one or began from it: a preference model reads one initial policy's tokens."""
    begun_from = ledger.inputs_of(session, policy_id).get("initial", policy_id)
    digests = {session.get_one(t.Artifact, id_).digest for id_ in (begun_from, initial_id)}
    return len(digests) == 1
