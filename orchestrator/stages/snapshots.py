"""The snapshots that a PPO run kept on its way: each an artifact of its own, with lineage to the run.

The run's artifact holds their folders (`ppo.snapshots`; models/policy/snapshots.py chooses them). As artifacts of kind
`snapshot` they can be served, paired and rated like the run's result.
"""

from __future__ import annotations

from models.policy.results import PPOResult
from models.runtime.results import result_from_json, result_to_json
from orchestrator.settings import code_revision
from orchestrator.stages.context import StageContext
from orchestrator.store import ledger
from orchestrator.store.ledger import RUN


def publish_snapshots(context: StageContext, run_id: int) -> list[int]:
    """Make each snapshot that the run kept an artifact, by rising √KL; those that are there already are found.

    Called whether the run was found or trained now: a process may have died between the two.
    """
    run = context.artifact(run_id)
    trained = result_from_json(PPOResult, run.results, where=f"the results of artifact {run_id}")
    ids = []
    for kept in trained.snapshots or ():
        settings = {"snapshot": kept.folder}
        fingerprint = ledger.fingerprint("snapshot", settings, {RUN: run.digest})
        with context.session() as session:
            found = ledger.find(session, fingerprint)
        if found is None:
            published = context.store.publish(context.store.fetch(run.digest) / kept.folder)
            with context.session() as session:
                found = ledger.record(
                    session,
                    kind="snapshot",
                    fingerprint=fingerprint,
                    published=published,
                    settings=settings,
                    results=result_to_json(kept.point),
                    inputs={RUN: run_id},
                    cycle_id=context.cycle_id,
                    code_revision=code_revision(),
                )
        ids.append(found.id)
    return ids
