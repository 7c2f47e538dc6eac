"""The report of a cycle: what went in, what was measured, what was decided, in Markdown, JSON and pictures.

Elo comes from people's comparisons alone; where nobody compared, it is null and the report says so. The pictures are
in `orchestrator/reports/pictures/catalogue.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.chat.refusals import RefusedRecords
from models.policy.results import Evaluation, PPOResult
from models.preference.results import OrderedPairs, PreferenceModelResults
from models.runtime.results import result_from_json
from orchestrator.cycles.cost import stage_times
from orchestrator.data.comparison_set import ComparisonSetResults
from orchestrator.data.contamination import DataCheckResults
from orchestrator.database import database
from orchestrator.judging.elo import EloNumbers
from orchestrator.judging.forecasts import mix_matrix, scaling
from orchestrator.judging.gates import LiveEvidence, Verdict
from orchestrator.judging.kl_law import curve_law
from orchestrator.reports.detectors import FittedDetector
from orchestrator.reports.distillation import course_of
from orchestrator.reports.initial_policy import doubts_of
from orchestrator.reports.numbers import CycleNumbers, ListedSnapshot
from orchestrator.reports.stops import stops_of
from orchestrator.reports.weeks import weeks_until
from orchestrator.store import ledger
from orchestrator.store.ledger import snapshots_of
from orchestrator.store.verdicts import asked_because

R = TypeVar("R")


def cycle_numbers(cycle_id: int, failure: str | None = None) -> CycleNumbers:
    """Everything the ledger knows about a cycle's outcome, and what ended its run just now where that is given.

    Raises:
        ResultError: results that are not what they should be.
    """
    with database() as session:
        return numbers_of(session, cycle_id, failure)


def numbers_of(session: Session, cycle_id: int, failure: str | None = None) -> CycleNumbers:
    """The same, read in a transaction of the caller's."""
    cycle = session.get_one(t.Cycle, cycle_id)
    artifacts = newest_artifacts(session, cycle_id)
    decision = _decision(session, cycle)
    judged = decision or _approval(session, cycle_id)
    snapshot, initial = artifacts.get("snapshot"), artifacts.get("initial_policy")
    model, detector = artifacts.get("preference_model"), artifacts.get("ood_detector")
    training, live = _results(PPOResult, snapshot), _live(judged)
    live_policy = session.get_one(t.Artifact, live.id) if live is not None else None
    return CycleNumbers(
        cycle=cycle.number,
        name=cycle.name,
        artifact_ids={kind: artifact.id for kind, artifact in artifacts.items()},
        digests={kind: artifact.digest for kind, artifact in artifacts.items()},
        comparison_set=_results(ComparisonSetResults, artifacts.get("comparison_set")),
        data_check=_results(DataCheckResults, artifacts.get("data_check")),
        doubts=doubts_of(initial.results) if initial else (),
        distillation=course_of(initial.results) if initial else None,
        texts_refused=_refused(newest_artifacts(session, cycle_id, ("distillation_set",)).get("distillation_set")),
        examples_refused=_refused(artifacts.get("prompt_set")),
        preference_model=_results(PreferenceModelResults, model),
        scaling=scaling(session, model) if model else None,
        mix_matrix=mix_matrix(session, model) if model else None,
        watcher=_results(PreferenceModelResults, _watcher(session, cycle_id)),
        orientation=_measured(session, OrderedPairs, cycle_id, "orientation", model),
        snapshot=snapshot.digest if snapshot else None,
        training=training,
        snapshots=_on_the_way(session, snapshot),
        kl_law=curve_law(training.curve) if training else None,
        evaluation=_measured(session, Evaluation, cycle_id, "policy", snapshot),
        initial_evaluation=_measured(session, Evaluation, cycle_id, "policy", initial),
        live=live,
        live_evaluation=_measured(session, Evaluation, cycle_id, "policy", live_policy),
        best_of_n=_measured(session, Evaluation, cycle_id, "best_of_n", initial),
        detector=_detector(detector) if detector else None,
        elo=_measured(session, EloNumbers, cycle_id, "elo", snapshot),
        stops=tuple(stops_of(session, cycle_id, training, snapshot.digest if snapshot else None, failure)),
        waits=asked_because(judged.reasons, judged.why) if isinstance(judged, t.Approval) else None,
        decision=decision.decision if decision else None,
        reasons=_verdicts(judged),
        weeks=weeks_until(session, cycle.number),
        stages=tuple(stage_times(session, cycle_id)),
    )


KINDS = (
    "initial_policy", "comparison_set", "data_check", "preference_model", "prompt_set", "snapshot", "ood_detector",
)  # fmt: skip
"""Of the artifacts that a report names."""


def newest_artifacts(session: Session, cycle_id: int, kinds: Collection[str] = KINDS) -> dict[str, t.Artifact]:
    """By kind, the artifact that the cycle's latest finished stage of that kind ended with."""
    rows = session.scalars(
        select(t.Artifact)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Stage.state.in_(("done", "found")), t.Artifact.kind.in_(kinds))
        .where(~ledger.is_watcher())
        .order_by(t.Stage.id)
    )
    return {artifact.kind: artifact for artifact in rows}


def _results(cls: type[R], artifact: t.Artifact | None) -> R | None:
    """The results of an artifact as what they are."""
    if artifact is None:
        return None
    return result_from_json(cls, artifact.results, where=f"the results of {artifact.kind} {artifact.id}")


def _refused(artifact: t.Artifact | None) -> RefusedRecords | None:
    """What the chat template refused of a set that a job made."""
    found = artifact.results.get("refused") if artifact is not None else None
    return result_from_json(RefusedRecords, found, where="the refused records") if found else None


def _detector(artifact: t.Artifact) -> FittedDetector:
    where = f"the results of {artifact.kind} {artifact.id}"
    return result_from_json(FittedDetector, artifact.results | {"digest": artifact.digest}, where=where)


def _on_the_way(session: Session, run: t.Artifact | None) -> tuple[ListedSnapshot, ...]:
    """The snapshots that a PPO run kept."""
    if run is None:
        return ()
    return tuple(
        result_from_json(ListedSnapshot, kept.results | {"digest": kept.digest}, where=f"the results of {kept.id}")
        for kept in snapshots_of(session, run.id)
    )


def _decision(session: Session, cycle: t.Cycle) -> t.Decision | None:
    """What was decided about the cycle's snapshot; in week 0, that the initial policy goes live.

    A cycle that finds nothing live decides about the initial policy too, long before it has a snapshot.
    """
    kinds = ("initial", "cycle") if cycle.number == 0 else ("cycle",)
    return session.scalars(
        select(t.Decision)
        .where(t.Decision.cycle_id == cycle.id, t.Decision.kind.in_(kinds))
        .order_by(t.Decision.id.desc())
        .limit(1)
    ).first()


def _approval(session: Session, cycle_id: int) -> t.Approval | None:
    """What people are asked about the cycle: it has the verdicts and the evidence before there is a decision."""
    query = select(t.Approval).where(t.Approval.cycle_id == cycle_id).order_by(t.Approval.id.desc())
    return session.scalars(query.limit(1)).first()


def _verdicts(judged: t.Decision | t.Approval | None) -> tuple[Verdict, ...]:
    if judged is None:
        return ()
    where = f"the reasons of {judged.__tablename__} {judged.id}"
    return tuple(result_from_json(Verdict, reason, where=where) for reason in judged.reasons)


def _watcher(session: Session, cycle_id: int) -> t.Artifact | None:
    """The preference model's twin, where the cycle trained one."""
    return session.scalars(
        select(t.Artifact)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Stage.state.in_(("done", "found")), t.Stage.name == "train_watcher")
        .order_by(t.Stage.id.desc())
        .limit(1)
    ).first()


def _measured(session: Session, cls: type[R], cycle_id: int, kind: str, subject: t.Artifact | None) -> R | None:
    """What the cycle measured last about an artifact; None where there is no such artifact yet."""
    if subject is None:
        return None
    found = evaluation_row(session, cycle_id, kind, subject.id)
    return result_from_json(cls, found.numbers, where=f"the numbers of evaluation {found.id}") if found else None


def _live(judged: t.Decision | t.Approval | None) -> LiveEvidence | None:
    """How the snapshot compared with what was live; decisions of some age don't say."""
    found = judged.evidence.get("live") if judged is not None else None
    return result_from_json(LiveEvidence, found, where="what was live, in the evidence") if found else None


def evaluation_row(session: Session, cycle_id: int, kind: str, subject_id: int) -> t.Evaluation | None:
    """The cycle's newest evaluation of that kind of an artifact."""
    return session.scalars(
        select(t.Evaluation)
        .where(t.Evaluation.cycle_id == cycle_id, t.Evaluation.kind == kind, t.Evaluation.subject_id == subject_id)
        .order_by(t.Evaluation.id.desc())
        .limit(1)
    ).first()
