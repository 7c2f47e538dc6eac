"""Decide about a snapshot on the evidence, put it live, and put it before people beside initial and last policy.

Where a person is asked first, the question is a row of `approvals` (`orchestrator/store/approvals.py`), the run ends,
and whoever takes the decision lets the rest be done. The rows are the record; the policy server is told afterwards and
follows the same rows by itself, so that a crash between the two leaves nothing undone.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.conversations.contestants import policy
from orchestrator.conversations.pairings import active_pairings, end_pairing, open_pairing
from orchestrator.database import database
from orchestrator.instance.policy_api import policy_api
from orchestrator.judging.gates import Verdict, judge, outcome
from orchestrator.stages.context import StageContext
from orchestrator.stages.evidence import measured_evidence
from orchestrator.stages.live import live_before
from orchestrator.store import approvals
from orchestrator.store.acts import GATES, said_of
from orchestrator.store.deployments import deploy, live_deployment
from orchestrator.store.live import how_to_decide, waiting_said
from orchestrator.store.verdicts import failed_said


def deploy_initial_policy(cycle_id: int, initial_id: int) -> int | None:
    """Put the initial policy live where nothing is, so that people can start. Returns the deployment, or None."""
    with StageContext(cycle_id, "deploy_initial_policy") as context:
        with context.session() as session:
            if live_deployment(session) is not None:
                return None
            decision = t.Decision(
                cycle_id=cycle_id,
                snapshot_id=initial_id,
                decision="promote",
                reasons=[{"gate": "none", "passed": True, "reason": "nothing was live: the initial policy begins"}],
                evidence={},
                decided_by=GATES.name,
                kind="initial",
            )
            session.add(decision)
            session.flush()
            decision_id = decision.id
        return _put_live(context, decision_id)


def decide_promotion(
    cycle_id: int, snapshot_id: int, snapshot_evaluation_id: int, initial_evaluation_id: int
) -> int | None:
    """Judge the snapshot by the gates and write the decision with its evidence, once per cycle. Returns it.

    None where a person is asked, and has not answered yet.
    """
    with StageContext(cycle_id, "decide_promotion") as context:
        evidence = measured_evidence(context, snapshot_evaluation_id, initial_evaluation_id)
        verdicts = judge(context.config.gates, evidence)
        asked = _why_a_person_is_asked(context, verdicts)
        with context.session() as session:
            approvals.expire(session)
            earlier = _decision_of(session, cycle_id)
            if earlier is not None:
                return earlier.id
            reasons = [verdict.to_json() for verdict in verdicts]
            if asked is not None or approvals.waiting(session):
                approvals.hold_for_decision(
                    session,
                    cycle_id,
                    snapshot_id,
                    asked or "",
                    reasons,
                    evidence.to_json(),
                    context.config.approval_timeout(),
                )
                return None
            decision = t.Decision(
                cycle_id=cycle_id,
                snapshot_id=snapshot_id,
                decision=outcome(verdicts),
                reasons=reasons,
                evidence=evidence.to_json(),
                decided_by=GATES.name,
            )
            session.add(decision)
            session.flush()
            return decision.id


def _why_a_person_is_asked(context: StageContext, verdicts: list[Verdict]) -> str | None:
    """Why a person has the last word about the snapshot; None where the gates have it."""
    came_to = outcome(verdicts)
    if came_to == "hold":
        return failed_said([verdict.to_json() for verdict in verdicts])
    asks = came_to == "promote" and context.config.approval.required
    return "the configuration wants a person's word (approval.required)" if asks else None


def _decision_of(session: Session, cycle_id: int) -> t.Decision | None:
    """The decision about what the cycle trained; that about the initial policy is another."""
    return session.scalars(
        select(t.Decision).where(t.Decision.cycle_id == cycle_id, t.Decision.kind == "cycle")
    ).one_or_none()


def what_waits(cycle_id: int) -> str:
    """What a cycle waits for, and how to decide, in one line; that it was decided where it was meanwhile."""
    with database() as session:
        found = [one for one in approvals.waiting(session) if one.cycle_id == cycle_id]
    if not found:
        return "It has just been decided; the decision is carried out by itself within minutes."
    return f"It waits for a decision: {waiting_said(found[0])}. {how_to_decide(found[0])}"


@dataclass(frozen=True)
class Decided:
    """A decision about a cycle, and what carrying it out needs."""

    decision_id: int
    snapshot_id: int
    initial_id: int


def what_was_decided(cycle_id: int) -> Decided | None:
    """What an open cycle was decided about by a person or by time; None where it is over, or nobody decided yet."""
    with database() as session:
        decision = _decision_of(session, cycle_id)
        if decision is None or session.get_one(t.Cycle, cycle_id).state != "open":
            return None
        initial_id = session.scalars(
            select(t.Stage.artifact_id)
            .where(t.Stage.cycle_id == cycle_id, t.Stage.name == "prepare_initial_policy")
            .where(t.Stage.artifact_id.is_not(None))
            .order_by(t.Stage.id.desc())
            .limit(1)
        ).one()
        assert initial_id is not None
        return Decided(decision.id, decision.snapshot_id, initial_id)


def promote(cycle_id: int, decision_id: int) -> int | None:
    """Put the decided snapshot live, or leave the live policy alone where it was refused. Returns the deployment."""
    with StageContext(cycle_id, "promote") as context:
        with context.session() as session:
            if session.get_one(t.Decision, decision_id).decision == "refuse":
                return None
        return _put_live(context, decision_id)


def put_before_people(cycle_id: int, snapshot_id: int, initial_id: int) -> int | None:
    """Let raters compare the snapshot, promoted or refused, with the initial policy and with what was live before it.

    These comparisons give the Elo and are never trained on; both pairings are drawn equally often. Returns the pairing
    with the initial policy. None where the weights are the same: a comparison would tell nothing, and an earlier
    cycle's pairings stay in force.
    """
    with StageContext(cycle_id, "put_before_people") as context:
        with context.session() as session:
            if is_initial_policy(session, snapshot_id, initial_id):
                return None
            live_id = live_before(session, cycle_id)
        others = [initial_id]
        if live_id is not None and live_id not in (initial_id, snapshot_id):
            others.append(live_id)
        for artifact_id in (snapshot_id, *others):
            _serve(context, artifact_id)
        with context.session() as session:
            snapshot, met = policy(session, snapshot_id), [policy(session, other) for other in others]
            for pairing in active_pairings(session, "model_comparison"):
                # What an operator opened stays until an operator ends it.
                if pairing.cycle_id is not None and (pairing.a, pairing.b) not in [(snapshot, other) for other in met]:
                    end_pairing(session, pairing.id)
            opened = [open_pairing(session, "model_comparison", snapshot.id, other.id, cycle_id) for other in met]
            return opened[0].id


def is_initial_policy(session: Session, snapshot_id: int, initial_id: int) -> bool:
    """Whether a snapshot that was decided on has the initial policy's weights.

    It has them where its KL was exactly 0: another training leaves files, and so a digest, of its own.
    """
    kl_nats = session.scalars(
        select(t.Decision.evidence["kl_nats"].as_float())
        # What a person put live by hand was decided without measuring it anew.
        .where(t.Decision.snapshot_id == snapshot_id, t.Decision.evidence.has_key("kl_nats"))
        .order_by(t.Decision.id.desc())
        .limit(1)
    ).first()
    digests = {session.get_one(t.Artifact, artifact_id).digest for artifact_id in (snapshot_id, initial_id)}
    return kl_nats == 0 or len(digests) == 1


def refusal(decision_id: int) -> str | None:
    """Why the snapshot was refused, in one line of plain words, or None where it was promoted."""
    with database() as session:
        decision = session.get_one(t.Decision, decision_id)
    if decision.decision == "promote":
        return None
    if decision.approval_id is not None:
        who = said_of(decision.decided_by, decision.identity)
        return f"Promotion refused: {decision.note if decision.identity == 'program' else f'{who}: {decision.note}'}."
    why = failed_said(decision.reasons, decision.evidence.get("kl_nats"))
    return f"Promotion refused: {why}. The gates and their numbers are in the cycle's report."


def _put_live(context: StageContext, decision_id: int) -> int:
    with context.session() as session:
        snapshot_id = session.get_one(t.Decision, decision_id).snapshot_id
    # Loaded and verified before anything is written: a snapshot that cannot be served must not become live.
    _serve(context, snapshot_id)
    with context.session() as session:
        deployed = session.scalars(select(t.Deployment).where(t.Deployment.decision_id == decision_id)).one_or_none()
        if deployed is not None and deployed.ended_at is not None:
            # Something else has gone live since, by hand or by a later cycle; a rerun must not undo that.
            return deployed.id
        deployed = deployed or deploy(session, snapshot_id, decision_id, context.cycle_id)
        deployment_id = deployed.id
    client = policy_api(context.settings)
    if client is not None:
        client.follow()
    return deployment_id


def _serve(context: StageContext, artifact_id: int) -> None:
    client = policy_api(context.settings)
    digest = context.artifact(artifact_id).digest
    if client is not None:
        client.load(digest)
    else:
        # Without a policy server (training on imported comparisons alone) the files must still be whole.
        context.store.fetch(digest)
