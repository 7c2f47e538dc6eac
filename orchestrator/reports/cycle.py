"""The report of a cycle: what went in, what was measured, what was decided, in Markdown, JSON and pictures.

Elo comes from people's comparisons alone; where nobody compared, it is null and the report says so. The pictures are
in `orchestrator/reports/pictures/catalogue.py`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.runtime.results import part_to_json
from orchestrator.database import database
from orchestrator.judging.forecasts import mix_matrix, scaling
from orchestrator.judging.kl_law import law_numbers
from orchestrator.reports.distillation import distillation_numbers
from orchestrator.reports.policies import training_of
from orchestrator.reports.stops import stops_of
from orchestrator.store import ledger
from orchestrator.store.ledger import described, snapshots_of

FIRST_STAGE = "prepare_initial_policy"


def cycle_numbers(cycle_id: int, failure: str | None = None) -> dict[str, Any]:
    """Everything the ledger knows about a cycle's outcome, and what ended its run just now where that is given."""
    with database() as session:
        cycle = session.get_one(t.Cycle, cycle_id)
        artifacts = newest_artifacts(session, cycle_id)
        decision = session.scalars(
            select(t.Decision).where(t.Decision.cycle_id == cycle_id).order_by(t.Decision.id.desc()).limit(1)
        ).first()
        snapshot = artifacts.get("snapshot")
        initial = artifacts.get("initial_policy")
        comparison_set = artifacts.get("comparison_set")
        model = artifacts.get("preference_model")
        detector = artifacts.get("ood_detector")
        training = training_of({"training": snapshot.results}) if snapshot else None
        numbers: dict[str, Any] = {
            "cycle": cycle.number,
            "name": cycle.name,
            "artifact_ids": {kind: artifact.id for kind, artifact in artifacts.items()},
            "comparison_set": comparison_set.results if comparison_set else None,
            "data_check": artifacts["data_check"].results if "data_check" in artifacts else None,
            "distillation": distillation_numbers(initial.results) if initial else None,
            "preference_model": model.results if model else None,
            "scaling": _as_json(scaling(session, model)) if model else None,
            "mix_matrix": _as_json(mix_matrix(session, model)) if model else None,
            "watcher": _watcher(session, cycle_id),
            "orientation": _evaluation(session, cycle_id, "orientation", None),
            "snapshot": snapshot.digest if snapshot else None,
            "training": snapshot.results if snapshot else None,
            "snapshots": [described(kept) for kept in snapshots_of(session, snapshot.id)] if snapshot else [],
            "kl_law": law_numbers(training.curve) if training else None,
            "evaluation": _evaluation(session, cycle_id, "policy", snapshot.id if snapshot else None),
            "initial_evaluation": _initial_evaluation(session, cycle_id, snapshot),
            "best_of_n": _evaluation(session, cycle_id, "best_of_n", None),
            "detector": detector.results | {"digest": detector.digest} if detector else None,
            "elo": _evaluation(session, cycle_id, "elo", snapshot.id if snapshot else None),
            "stops": stops_of(
                session,
                cycle_id,
                training,
                snapshot.digest if snapshot else None,
                failure,
            ),
            "decision": decision.decision if decision else None,
            "reasons": decision.reasons if decision else [],
            "stages": stage_times(session, cycle_id),
        }
    return numbers


def _as_json(found: Any) -> dict[str, Any] | None:
    return None if found is None else part_to_json(found)


def stage_times(session: Session, cycle_id: int) -> list[dict[str, Any]]:
    """The cycle's stages in the order in which they began: state, seconds of each, and how many of them its job ran.

    Stages that ran at the same time count the same seconds each. `run` numbers the runs of the cycle from 1: one that
    was started again takes its stages from the first one on.
    """
    times: list[dict[str, Any]] = []
    run = 0
    for stage in session.scalars(select(t.Stage).where(t.Stage.cycle_id == cycle_id).order_by(t.Stage.id)):
        run += stage.name == FIRST_STAGE
        times.append(
            {
                "stage": stage.name,
                "state": stage.state,
                "run": run,
                "seconds": (stage.ended_at - stage.started_at).total_seconds() if stage.ended_at else None,
                "job_seconds": stage.job_seconds,
            }
        )
    return times


def newest_artifacts(session: Session, cycle_id: int) -> dict[str, t.Artifact]:
    """By kind, the artifact that the cycle's latest finished stage of that kind ended with."""
    kinds = (
        "initial_policy", "comparison_set", "data_check", "preference_model", "prompt_set", "snapshot", "ood_detector",
    )  # fmt: skip
    rows = session.scalars(
        select(t.Artifact)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Stage.state.in_(("done", "found")), t.Artifact.kind.in_(kinds))
        .where(~ledger.is_watcher())
        .order_by(t.Stage.id)
    )
    return {artifact.kind: artifact for artifact in rows}


def _watcher(session: Session, cycle_id: int) -> dict[str, Any] | None:
    """Results of the preference model's twin, where the cycle trained one."""
    return session.scalars(
        select(t.Artifact.results)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Stage.state.in_(("done", "found")), t.Stage.name == "train_watcher")
        .order_by(t.Stage.id.desc())
        .limit(1)
    ).first()


def _evaluation(session: Session, cycle_id: int, kind: str, subject_id: int | None) -> dict[str, Any] | None:
    found = evaluation_row(session, cycle_id, kind, subject_id)
    return found.numbers if found else None


def evaluation_row(session: Session, cycle_id: int, kind: str, subject_id: int | None) -> t.Evaluation | None:
    query = select(t.Evaluation).where(t.Evaluation.cycle_id == cycle_id, t.Evaluation.kind == kind)
    if subject_id is not None:
        query = query.where(t.Evaluation.subject_id == subject_id)
    return session.scalars(query.order_by(t.Evaluation.id.desc()).limit(1)).first()


def _initial_evaluation(session: Session, cycle_id: int, snapshot: t.Artifact | None) -> dict[str, Any] | None:
    query = select(t.Evaluation).where(t.Evaluation.cycle_id == cycle_id, t.Evaluation.kind == "policy")
    if snapshot is not None:
        query = query.where(t.Evaluation.subject_id != snapshot.id)
    found = session.scalars(query.order_by(t.Evaluation.id.desc()).limit(1)).first()
    return found.numbers if found else None
