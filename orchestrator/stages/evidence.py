"""Gather the numbers that the gates look at: `orchestrator/judging/gates.py` says what they must be."""

from __future__ import annotations

from sqlalchemy import select

from db import tables as t
from models.policy.results import Evaluation
from models.preference.results import ModelSummary
from models.runtime.results import result_from_json
from models.statistics.intervals import mean_interval
from orchestrator.judging.evaluations import read_replies
from orchestrator.judging.gates import Evidence
from orchestrator.stages.context import StageContext


def measured_evidence(context: StageContext, snapshot_evaluation_id: int, initial_evaluation_id: int) -> Evidence:
    """What the gates look at: the evaluations of the snapshot and of the initial policy, and their preference model."""
    numbers = context.results(snapshot_evaluation_id)
    snapshot = result_from_json(Evaluation, numbers, where=f"the results of evaluation {snapshot_evaluation_id}")
    gain, gain_ci = _paired_gain(context, snapshot_evaluation_id, initial_evaluation_id)
    held_out = _preference_model(context, snapshot_evaluation_id).held_out
    # An evaluation found from before these were measured doesn't have them.
    ordinary = snapshot.of_ordinary_requests
    refusing = ordinary.collapse if ordinary is not None else None
    return Evidence(
        pm_accuracy=held_out.accuracy,
        pm_accuracy_ci=held_out.ci,
        num_held_out=held_out.n,
        num_dialogues=held_out.dialogues,
        score_gain=gain,
        score_gain_ci=gain_ci,
        kl_nats=snapshot.kl_nats,
        duplicate_share=snapshot.collapse.duplicates if snapshot.collapse else None,
        refusal_share=refusing.refusals if refusing else None,
    )


def _preference_model(context: StageContext, evaluation_id: int) -> ModelSummary:
    """The preference model that an evaluation scored with."""
    with context.session() as session:
        parent = session.execute(
            select(t.Artifact)
            .join(t.LineageEdge, t.LineageEdge.parent_id == t.Artifact.id)
            .where(t.LineageEdge.child_id == evaluation_id, t.LineageEdge.role == "preference_model")
        ).scalar_one()
    return result_from_json(ModelSummary, parent.results, where=f"the results of preference model {parent.id}")


def _paired_gain(context: StageContext, one_id: int, other_id: int) -> tuple[float, tuple[float, float]]:
    """Mean difference of scores over the same prompts, with its 95 % interval (Student's)."""
    one = {reply.prompt_id: reply.score for reply in read_replies(context.fetch(one_id))}
    other = {reply.prompt_id: reply.score for reply in read_replies(context.fetch(other_id))}
    differences = [score - other[prompt] for prompt, score in one.items() if prompt in other]
    if not differences:
        context.fail(f"Evaluations {one_id} and {other_id} have no prompt in common; the gain cannot be measured.")
    mean, low, high = mean_interval(differences)
    return mean, (low, high)
