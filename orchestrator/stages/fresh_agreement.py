"""The stage that asks the last preference model what it makes of this week's comparisons.

The gate `fresh_agreement` reads what it says: `orchestrator/judging/agreement.py` has the rule.
"""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.stages.context import StageContext, run_job_stage
from orchestrator.store import ledger


def check_fresh_agreement(cycle_id: int, comparison_set_id: int, *, fresh: bool = False) -> int | None:
    """Score this week's comparisons with the last preference model. Returns the evaluation.

    None where there is no earlier model of the project to ask, or no comparison came since.
    """
    with StageContext(cycle_id, "check_fresh_agreement") as context:
        with context.session() as session:
            last = last_model(session, cycle_id)
            freeze_id = session.scalars(select(t.Freeze.id).where(t.Freeze.cycle_id == cycle_id)).one()
        shards = _shards_of(context.fetch(comparison_set_id), freeze_id)
        if last is None or not shards:
            return None
        model_id, number = last
        evaluation_id = run_job_stage(
            context,
            kind="evaluation",
            job="check_preference_model",
            inputs={"preference_model": model_id, "comparisons": comparison_set_id},
            settings={"threads": context.config.preference_model.threads, "shards": shards},
            fresh=fresh,
        )
        numbers = {**context.results(evaluation_id), "of_cycle": number}
        context.record_evaluation("fresh_agreement", model_id, numbers, evaluation_id)
        return evaluation_id


def last_model(session: Session, cycle_id: int) -> tuple[int, int] | None:
    """The newest preference model of the project that a decision stands on, and the number of its cycle.

    One whose own week was refused because it contradicted the one before is no witness: it learned from that week. A
    model without a decision belongs to a cycle that was given up.
    """
    cycle = session.get_one(t.Cycle, cycle_id)
    turned = t.Decision.reasons.contains([{"gate": "fresh_agreement", "passed": False}])
    row = session.execute(
        select(t.Artifact.id, t.Cycle.number)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .join(t.Cycle, t.Cycle.id == t.Stage.cycle_id)
        .join(t.Decision, t.Decision.cycle_id == t.Cycle.id)
        .where(t.Stage.name == "train_preference_model", t.Stage.state.in_(("done", "found")))
        .where(t.Cycle.name == cycle.name, t.Cycle.id < cycle_id, t.Cycle.state.in_(("promoted", "refused")))
        .where(t.Decision.kind == "cycle", ~((t.Decision.decision == "refuse") & turned))
        .where(~ledger.is_watcher())
        .order_by(t.Cycle.number.desc(), t.Stage.id.desc())
        .limit(1)
    ).first()
    return (row.id, row.number) if row is not None else None


def _shards_of(directory: Path, freeze_id: int) -> list[str]:
    """The shards that hold what a freeze took, as the set's manifest names them."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    mine = (shard for shard in manifest["shards"] if shard["freeze_id"] == freeze_id)
    return [shard["file"] for shard in mine if shard["records"] > 0]
