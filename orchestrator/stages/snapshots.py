"""The snapshots that a PPO run kept on its way: each an artifact of its own, with lineage to the run.

The run's artifact holds their folders (`ppo.snapshots`; models/policy/snapshots.py chooses them). As artifacts of kind
`snapshot` they can be served, paired and rated like the run's result.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.stages.context import StageContext, code_revision
from orchestrator.store import ledger
from orchestrator.store.ledger import RUN


def publish_snapshots(context: StageContext, run_id: int) -> list[int]:
    """Make each snapshot that the run kept an artifact, by rising √KL; those that are there already are found.

    Called whether the run was found or trained now: a process may have died between the two.
    """
    run = context.artifact(run_id)
    ids = []
    for point in run.results.get("snapshots") or []:
        settings = {"snapshot": point["folder"]}
        fingerprint = ledger.fingerprint("snapshot", settings, {RUN: run.digest})
        with context.session() as session:
            found = ledger.find(session, fingerprint)
        if found is None:
            published = context.store.publish(context.store.fetch(run.digest) / point["folder"])
            with context.session() as session:
                found = ledger.record(
                    session,
                    kind="snapshot",
                    fingerprint=fingerprint,
                    published=published,
                    settings=settings,
                    results={key: value for key, value in point.items() if key != "folder"},
                    inputs={RUN: run_id},
                    cycle_id=context.cycle_id,
                    code_revision=code_revision(),
                )
        ids.append(found.id)
    return ids


def snapshots_of(session: Session, run_id: int) -> list[t.Artifact]:
    """The snapshots of a run, by the samples that PPO had learned from."""
    rows = session.scalars(
        select(t.Artifact)
        .join(t.LineageEdge, t.LineageEdge.child_id == t.Artifact.id)
        .where(t.LineageEdge.parent_id == run_id, t.LineageEdge.role == RUN, t.Artifact.kind == "snapshot")
    )
    return sorted(rows, key=lambda artifact: int(artifact.results["samples"]))


def described(artifact: t.Artifact) -> dict[str, Any]:
    """A snapshot as a report lists it."""
    return {"digest": artifact.digest} | {key: artifact.results[key] for key in ("samples", "kl_nats", "score")}
