"""What is live. Who else may answer raters is in `orchestrator/conversations/contestants.py`.

Used by the stages, the policy server and the feedback app. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

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


# Columns stand in the order of the dataclass's fields. The statement is built once: building costs more than running.
LIVE = (
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


def live_deployment(session: Session) -> LiveDeployment | None:
    """The live deployment, or None before the first one."""
    row = session.execute(LIVE).one_or_none()
    return LiveDeployment(*row) if row is not None else None


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


POLICIES = ("initial_policy", "snapshot")
"""Kinds of artifacts that can answer."""


def digests_of(session: Session, prefix: str, kinds: tuple[str, ...]) -> list[str]:
    """Up to two digests of artifacts of these kinds that begin with `prefix`."""
    return list(
        session.scalars(
            select(t.Artifact.digest)
            .where(
                t.Artifact.kind.in_(kinds),
                t.Artifact.digest.startswith(prefix, autoescape=True),
            )
            .distinct()
            .limit(2)
        )
    )
