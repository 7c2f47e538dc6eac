"""Gather the numbers that the gates look at: `orchestrator/judging/gates.py` says what they must be."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.policy.results import Evaluation, JudgedReply
from models.preference.results import HeldOutReport, ModelSummary, OrderedPairs
from models.runtime.results import result_from_json
from models.statistics.intervals import mean_interval_json
from orchestrator.judging.agreement import ALL, agreement
from orchestrator.judging.evaluations import read_replies
from orchestrator.judging.gates import Evidence, FreshEvidence, Gain, LiveEvidence, Share
from orchestrator.stages.context import StageContext
from orchestrator.stages.elo import newest_elo
from orchestrator.stages.live import live_before, scorable
from orchestrator.store import ledger

MIN_PROMPTS = 10
"""Fewer prompts of a question say nothing about it."""
BY_QUESTION = 0.99
"""Confidence of gains by question: there are up to four of them, and a tie must not be refused by bad luck."""

Replies = Mapping[str, JudgedReply]
"""What an evaluation judged, by prompt."""


def measured_evidence(context: StageContext, snapshot_evaluation_id: int, initial_evaluation_id: int) -> Evidence:
    """What the gates look at: the evaluations of the snapshot, the initial and the live policy, and their PM."""
    numbers = context.results(snapshot_evaluation_id)
    snapshot = result_from_json(Evaluation, numbers, where=f"the results of evaluation {snapshot_evaluation_id}")
    after, before = _replies(context, snapshot_evaluation_id), _replies(context, initial_evaluation_id)
    gain = paired_gain(after, before)
    if gain is None:
        context.fail(
            f"Evaluations {snapshot_evaluation_id} and {initial_evaluation_id} have no prompt in common; the gain "
            "cannot be measured."
        )
    held_out = _preference_model(context, snapshot_evaluation_id).held_out
    # An evaluation found from before these were measured doesn't have them.
    ordinary = snapshot.of_ordinary_requests
    refusing = ordinary.collapse if ordinary is not None else None
    return Evidence(
        pm_accuracy=held_out.accuracy,
        pm_accuracy_ci=held_out.ci,
        num_held_out=held_out.n,
        num_dialogues=held_out.dialogues,
        score_gain=gain.gain,
        score_gain_ci=gain.ci,
        kl_nats=snapshot.kl_nats,
        duplicate_share=snapshot.collapse.duplicates if snapshot.collapse else None,
        refusal_share=refusing.refusals if refusing else None,
        pm_accuracy_by_question=_by_question(held_out),
        score_gain_by_question=_gains_by_question(after, before),
        live=_live_evidence(context, after, snapshot_evaluation_id, initial_evaluation_id),
        fresh=_fresh_evidence(context),
    )


def _replies(context: StageContext, evaluation_id: int) -> Replies:
    return {reply.prompt_id: reply for reply in read_replies(context.fetch(evaluation_id))}


def _by_question(held_out: HeldOutReport) -> dict[str, Share]:
    """The accuracy on each question; of a single one it is that of all."""
    found = {
        question: Share(part.accuracy, part.ci, part.n)
        for question, part in sorted(held_out.by_question.items())
        if part.accuracy is not None
    }
    return found if len(held_out.by_question) > 1 else {}


def paired_gain(one: Replies, other: Replies, kind: str | None = None, confidence: float = 0.95) -> Gain | None:
    """Mean difference of scores over the prompts that both answered, of one kind where it is given.

    The interval is Student's, robust to dependence within a dialogue: its turns are prompts that share what was said.
    """
    both = [(reply, other[prompt]) for prompt, reply in one.items() if prompt in other and kind in (None, reply.kind)]
    if not both:
        return None
    differences = [mine.score - its.score for mine, its in both]
    mean, (low, high) = mean_interval_json(differences, confidence, [mine.cluster for mine, _ in both])
    return Gain(mean, (low, high), len(differences))


def _gains_by_question(one: Replies, other: Replies) -> dict[str, Gain]:
    """The gain on the prompts of each question that has enough of them; of a single question it is that of all."""
    kinds = sorted({reply.kind for reply in one.values()})
    gains = {kind: paired_gain(one, other, kind, BY_QUESTION) for kind in kinds} if len(kinds) > 1 else {}
    return {kind: gain for kind, gain in gains.items() if gain is not None and gain.num_prompts >= MIN_PROMPTS}


def _preference_model(context: StageContext, evaluation_id: int) -> ModelSummary:
    """The preference model that an evaluation scored with."""
    with context.session() as session:
        parent = session.get_one(t.Artifact, ledger.inputs_of(session, evaluation_id)["preference_model"])
    return result_from_json(ModelSummary, parent.results, where=f"the results of preference model {parent.id}")


def _live_evidence(
    context: StageContext, after: Replies, snapshot_evaluation_id: int, initial_evaluation_id: int
) -> LiveEvidence | None:
    """The live policy's score on the prompts and by the preference model of the snapshot's, and people's Elo of it."""
    assert context.cycle_id is not None, "an experiment promotes nothing"
    with context.session() as session:
        live_id = live_before(session, context.cycle_id)
        if live_id is None:
            return None
        initial_id = ledger.inputs_of(session, initial_evaluation_id)["policy"]
        known = {
            ledger.inputs_of(session, evaluation_id)["policy"]: evaluation_id
            for evaluation_id in (initial_evaluation_id, snapshot_evaluation_id)
        }
        evaluation_id = known.get(live_id) or _evaluation_of(session, context.cycle_id, live_id)
        can_score = scorable(session, live_id, initial_id)
        digest, elo = session.get_one(t.Artifact, live_id).digest, newest_elo(session, live_id)
    if evaluation_id is None and can_score:
        context.fail(
            f"Another policy went live while this cycle ran ({digest[:19]}), and it was not scored beside the "
            "snapshot. Run the cycle again: it scores it, and finds the rest."
        )
    live = LiveEvidence(live_id, digest, live_id == initial_id, elo=elo)
    if evaluation_id is None:
        return live
    replies = _replies(context, evaluation_id)
    return LiveEvidence(
        live.id, live.digest, live.is_initial, paired_gain(after, replies), _gains_by_question(after, replies), elo
    )


def _evaluation_of(session: Session, cycle_id: int, policy_id: int) -> int | None:
    """The artifact of a policy's newest evaluation in a cycle."""
    return session.scalars(
        select(t.Evaluation.artifact_id)
        .where(t.Evaluation.cycle_id == cycle_id, t.Evaluation.kind == "policy", t.Evaluation.subject_id == policy_id)
        .order_by(t.Evaluation.id.desc())
        .limit(1)
    ).first()


def _fresh_evidence(context: StageContext) -> FreshEvidence | None:
    """What the last preference model said about this week's comparisons; None where it was not asked."""
    with context.session() as session:
        row = session.execute(
            select(t.Evaluation.numbers, t.Artifact.id, t.Artifact.results)
            .join(t.Artifact, t.Artifact.id == t.Evaluation.subject_id)
            .where(t.Evaluation.cycle_id == context.cycle_id, t.Evaluation.kind == "fresh_agreement")
            .order_by(t.Evaluation.id.desc())
            .limit(1)
        ).first()
    if row is None:
        return None
    cycle = row.numbers["of_cycle"]
    numbers = {name: value for name, value in row.numbers.items() if name != "of_cycle"}
    fresh = result_from_json(OrderedPairs, numbers, where="this week's comparisons by the last preference model")
    held_out = result_from_json(ModelSummary, row.results, where=f"the results of preference model {row.id}").held_out
    parts = agreement({ALL: held_out, **held_out.by_question}, {ALL: fresh, **fresh.by_question})
    return FreshEvidence(cycle, parts)
