"""Decide about a snapshot on the evidence, put it live, and put it before people beside initial and last policy.

The rows are the record; the policy server is told afterwards and reads the same rows when it starts. So a crash
between the two leaves a policy server that the next run of the stage brings up to date.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.conversations.contestants import policy
from orchestrator.conversations.pairings import active_pairings, end_pairing, open_pairing
from orchestrator.database import database
from orchestrator.judging.gates import judge
from orchestrator.stages.context import StageContext
from orchestrator.stages.evidence import measured_evidence
from orchestrator.stages.live import live_before
from orchestrator.stages.policy_server import PolicyClient
from orchestrator.store.deployments import deploy, live_deployment

BY_GATES = "gates"


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
                decided_by=BY_GATES,
            )
            session.add(decision)
            session.flush()
            decision_id = decision.id
        return _put_live(context, decision_id)


def decide_promotion(cycle_id: int, snapshot_id: int, snapshot_evaluation_id: int, initial_evaluation_id: int) -> int:
    """Judge the snapshot by the gates and write the decision with its evidence, once per cycle. Returns it."""
    with StageContext(cycle_id, "decide_promotion") as context:
        evidence = measured_evidence(context, snapshot_evaluation_id, initial_evaluation_id)
        verdicts = judge(context.config.gates, evidence)
        with context.session() as session:
            earlier = session.execute(
                select(t.Decision).where(t.Decision.cycle_id == cycle_id, t.Decision.snapshot_id == snapshot_id)
            ).scalar_one_or_none()
            if earlier is not None:
                return earlier.id
            decision = t.Decision(
                cycle_id=cycle_id,
                snapshot_id=snapshot_id,
                decision="promote" if all(verdict.passed for verdict in verdicts) else "refuse",
                reasons=[verdict.to_json() for verdict in verdicts],
                evidence=evidence.to_json(),
                decided_by=BY_GATES,
            )
            session.add(decision)
            session.flush()
            return decision.id


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
        .where(t.Decision.snapshot_id == snapshot_id)
        .order_by(t.Decision.id.desc())
        .limit(1)
    ).first()
    digests = {session.get_one(t.Artifact, artifact_id).digest for artifact_id in (snapshot_id, initial_id)}
    return kl_nats == 0 or len(digests) == 1


def refusal(decision_id: int) -> str | None:
    """Why the snapshot was refused, in one line, or None where it was promoted."""
    with database() as session:
        decision = session.get_one(t.Decision, decision_id)
        failed = [reason["reason"] for reason in decision.reasons if not reason["passed"]]
    return "Promotion refused: " + "; ".join(failed) + "." if failed else None


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
    client = _client(context)
    if client is not None:
        client.promote(context.artifact(snapshot_id).digest)
    return deployment_id


def _serve(context: StageContext, artifact_id: int) -> None:
    client = _client(context)
    digest = context.artifact(artifact_id).digest
    if client is not None:
        client.load(digest)
    else:
        # Without a policy server (training on imported comparisons alone) the files must still be whole.
        context.store.fetch(digest)


def _client(context: StageContext) -> PolicyClient | None:
    url = context.settings.policy_url
    return PolicyClient(url, context.settings.admin_token) if url else None
