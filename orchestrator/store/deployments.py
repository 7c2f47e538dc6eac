"""What is live, and putting something live by hand: any policy there is, or the one that was live before.

Who else may answer raters is in `orchestrator/conversations/contestants.py`; what people are told of all this in
`orchestrator/store/live.py`. Used by the stages, the policy server and the feedback app. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import CycleError
from orchestrator.store.acts import Actor, reason_of
from orchestrator.store.ledger import RUN, named_or_newest


@dataclass(frozen=True)
class LiveDeployment:
    """The deployment that `policy-live` means now."""

    id: int
    snapshot_id: int
    digest: str
    kind: str
    """Kind of the artifact: `initial_policy` or `snapshot`."""
    cycle_id: int | None
    serving: Mapping[str, object]
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


def deploy(
    session: Session,
    snapshot_id: int,
    decision_id: int,
    cycle_id: int | None = None,
    preference_model_id: int | None = None,
) -> t.Deployment:
    """End what is live and begin a deployment of the snapshot, in the caller's transaction.

    Its preference model is the one that it was trained against, where no other is given.
    """
    live = _locked_live(session)
    if live is not None:
        live.ended_at = datetime.now(UTC)
        # The unique index admits one row without an end: the old one must have it before the new one is there.
        session.flush()
    deployment = t.Deployment(
        snapshot_id=snapshot_id,
        decision_id=decision_id,
        cycle_id=cycle_id,
        preference_model_id=preference_model_id or preference_model_of(session, snapshot_id),
    )
    session.add(deployment)
    session.flush()
    return deployment


def _locked_live(session: Session) -> t.Deployment | None:
    return session.execute(
        select(t.Deployment).where(t.Deployment.ended_at.is_(None)).with_for_update()
    ).scalar_one_or_none()


def preference_model_of(session: Session, snapshot_id: int) -> int | None:
    """The preference model that a snapshot, or the run that kept it on its way, was trained against."""
    edges = select(t.LineageEdge.role, t.LineageEdge.parent_id).where(t.LineageEdge.child_id == snapshot_id)
    parents = {edge.role: edge.parent_id for edge in session.execute(edges)}
    if "preference_model" in parents:
        return parents["preference_model"]
    return preference_model_of(session, parents[RUN]) if RUN in parents else None


@dataclass(frozen=True)
class Candidacy:
    """A policy that could be put live, with all that would come with it."""

    snapshot_id: int
    digest: str
    cycle_id: int | None
    """The cycle whose section [serving] holds for it."""
    preference_model_id: int | None
    deployment_id: int | None
    """The deployment that it goes back to; None for what never was live."""
    instead_of: int | None
    """The deployment that was live when it was chosen."""


def to_roll_back_to(session: Session, digest: str | None = None, cycle: int | None = None) -> Candidacy:
    """The deployment that a roll-back goes to: of a policy, of a cycle, or, where neither is named, the one before.

    After a roll-back "before" means before the deployment that it went to: twice goes back two, and never forth.

    Raises:
        CycleError: nothing like it was live, or it is live now.
        ArtifactError: the digest means no policy, or several.
    """
    live = live_deployment(session)
    if live is None:
        raise CycleError("Nothing is live yet, so there is nothing to go back from.")
    if digest is not None:
        meant = named_or_newest(session, digest, POLICIES, nothing="There is no policy.")
        found = _last_deployment(session, t.Artifact.digest == meant.digest)
        named = f"Policy {meant.digest[:19]}"
    elif cycle is not None:
        found = _last_deployment(session, t.Cycle.number == cycle)
        named = f"What cycle {cycle} made"
    else:
        found = _before(session, live.id)
        if found is None:
            raise CycleError(
                "Nothing was live before this policy, so there is no way back. Put another one live: at the desk "
                "under Live, or by `orchestrator promote DIGEST` (`orchestrator artifacts --kind snapshot` lists them)."
            )
        named = "It"
    if found is None:
        raise CycleError(
            f"{named} was never live, so one can't go back to it. `orchestrator promote DIGEST` puts any snapshot "
            "live; `orchestrator live --history` lists what was."
        )
    return _candidacy(session, found, live)


def to_promote(session: Session, digest: str) -> Candidacy:
    """A policy that a person wants live, with what it was served with before where it was live.

    Raises:
        CycleError: it is live now.
        ArtifactError: the digest means no policy, or several.
    """
    live = live_deployment(session)
    meant = named_or_newest(session, digest, POLICIES, nothing="There is no policy.")
    found = _last_deployment(session, t.Artifact.digest == meant.digest)
    if found is not None:
        return _candidacy(session, found, live)
    return Candidacy(
        meant.id,
        meant.digest,
        meant.cycle_id,
        preference_model_of(session, meant.id),
        None,
        live.id if live is not None else None,
    )


def put_live(
    session: Session, chosen: Candidacy, actor: Actor, why: str, kind: Literal["roll_back", "by_hand"]
) -> t.Deployment:
    """Write that a person put a policy live, and why, in the caller's transaction.

    Raises:
        CycleError: something else has gone live since it was chosen.
        Unsaid: no reason is given.
    """
    why = reason_of(why)
    live = _locked_live(session)
    if (live.id if live is not None else None) != chosen.instead_of:
        raise CycleError(
            "Something else has gone live meanwhile, so nothing was changed. `orchestrator live` says what and why; "
            "do it again if it is still meant."
        )
    decision = t.Decision(
        # Of no cycle: the cycle's own decision, which its report tells, stays as it is.
        cycle_id=None,
        snapshot_id=chosen.snapshot_id,
        decision="promote",
        kind=kind,
        reasons=[],
        evidence={"instead_of_deployment": chosen.instead_of, "as_in_deployment": chosen.deployment_id},
        decided_by=actor.name,
        identity=actor.identity,
        via=actor.via,
        note=why,
    )
    session.add(decision)
    session.flush()
    return deploy(session, chosen.snapshot_id, decision.id, chosen.cycle_id, chosen.preference_model_id)


def _candidacy(session: Session, found: t.Deployment, live: LiveDeployment | None) -> Candidacy:
    digest = session.get_one(t.Artifact, found.snapshot_id).digest
    if live is not None and live.digest == digest:
        raise CycleError(f"Policy {digest[:19]} is live already.")
    return Candidacy(
        found.snapshot_id,
        digest,
        found.cycle_id,
        found.preference_model_id,
        found.id,
        live.id if live is not None else None,
    )


def _last_deployment(session: Session, *where: Any) -> t.Deployment | None:
    return session.scalars(
        select(t.Deployment)
        .join(t.Artifact, t.Artifact.id == t.Deployment.snapshot_id)
        .outerjoin(t.Cycle, t.Cycle.id == t.Deployment.cycle_id)
        .where(*where)
        .order_by(t.Deployment.id.desc())
        .limit(1)
    ).first()


def before_live(session: Session) -> t.Deployment | None:
    """The deployment that a roll-back goes to where nothing is named; None where there is no way back."""
    live = live_deployment(session)
    return None if live is None else _before(session, live.id)


def _before(session: Session, deployment_id: int) -> t.Deployment | None:
    """The deployment of another policy before this one, or before the one that this one went back to."""
    here = session.get_one(t.Deployment, deployment_id)
    decision = session.get_one(t.Decision, here.decision_id)
    gone_back_to = decision.evidence.get("as_in_deployment") if decision.kind == "roll_back" else None
    if gone_back_to is not None:
        return _before(session, gone_back_to)
    digest = session.get_one(t.Artifact, here.snapshot_id).digest
    return _last_deployment(session, t.Deployment.id < deployment_id, t.Artifact.digest != digest)


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


def made_at(session: Session, digest: str) -> datetime:
    """When the artifact with the digest was first published."""
    return session.scalars(
        select(t.Artifact.created_at).where(t.Artifact.digest == digest).order_by(t.Artifact.id).limit(1)
    ).one()
