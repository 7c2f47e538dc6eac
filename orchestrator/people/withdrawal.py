"""A rater withdraws: out of every comparison set frozen from now on, of exports and of Elo. The texts stay.

What was made before stays as it was and can be replayed; `touched` lists it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.people.raters import WITHDRAWN, get_rater
from orchestrator.store.lineage import lineage


@dataclass(frozen=True)
class Touched:
    """What a rater's comparisons went into."""

    comparisons: int
    """All that the rater made, used or not."""
    withdrawn_at: datetime | None
    note: str | None
    artifacts: tuple[Mapping[str, object], ...]
    """id, kind, digest and cycle of each, nearest first: comparison sets, preference models, snapshots …"""
    deployments: tuple[Mapping[str, object], ...]
    """id, snapshot_id, started_at, ended_at and num_replies of each: where those answered raters."""
    reply_ids: tuple[int, ...]
    """Every reply to raters that those artifacts wrote or chose."""

    def to_json(self) -> Mapping[str, object]:
        """The same as JSON values."""
        return {
            "comparisons": self.comparisons,
            "withdrawn_at": None if self.withdrawn_at is None else self.withdrawn_at.isoformat(),
            "note": self.note,
            "artifacts": list(self.artifacts),
            "deployments": list(self.deployments),
            "reply_ids": list(self.reply_ids),
        }


def withdraw(session: Session, handle: str, note: str = "") -> bool:
    """Withdraw a rater, for good; False where that was done before. The token and every session end with it.

    A set that is frozen already, that of an open cycle too, keeps the comparisons.

    Raises:
        RaterError: there is no such rater.
    """
    rater = get_rater(session, handle)
    if session.scalar(select(t.Withdrawal.id).where(t.Withdrawal.rater_id == rater.id)) is not None:
        return False
    session.add(t.Withdrawal(rater_id=rater.id, note=note))
    rater.status = WITHDRAWN
    rater.token_digest = None
    session.flush()
    return True


def touched(session: Session, rater_id: int) -> Touched:
    """Every artifact, deployment and served reply that a rater's comparisons went into.

    Raises:
        ArtifactError: there is no such rater.
    """
    reached = lineage(session, f"rater:{rater_id}").downstream()
    deployments = tuple(_facts(node.facts) for node in reached if node.kind == "deployment")
    ids = [node.facts["id"] for node in reached if node.key.startswith("artifact:")]
    # By the weights that wrote it, whether deployed or only paired, or by the preference model that chose it.
    replies = (
        select(t.Candidate.id)
        .outerjoin(t.Contestant, t.Contestant.id == t.Candidate.contestant_id)
        .where(t.Candidate.snapshot_id.in_(ids) | t.Contestant.preference_model_id.in_(ids))
    )
    withdrawal = session.scalars(select(t.Withdrawal).where(t.Withdrawal.rater_id == rater_id)).one_or_none()
    made = select(func.count()).select_from(t.Comparison).where(t.Comparison.rater_id == rater_id)
    return Touched(
        comparisons=session.scalars(made).one(),
        withdrawn_at=None if withdrawal is None else withdrawal.created_at,
        note=None if withdrawal is None else withdrawal.note,
        artifacts=tuple(
            {"id": node.facts["id"], "kind": node.kind} | {key: node.facts[key] for key in ("digest", "cycle")}
            for node in reached
            if node.key.startswith("artifact:")
        ),
        deployments=deployments,
        reply_ids=tuple(session.scalars(replies.order_by(t.Candidate.id))),
    )


def _facts(facts: Mapping[str, object]) -> Mapping[str, object]:
    return {key: facts[key] for key in ("id", "snapshot_id", "started_at", "ended_at", "num_replies")}
