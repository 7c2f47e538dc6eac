"""Stages of the policy: PPO, and what its snapshots are worth."""

from __future__ import annotations

from sqlalchemy import func, select

from db import tables as t
from models.policy.settings import JudgedReplies, PPOSettings
from orchestrator.config import told
from orchestrator.database import database
from orchestrator.stages.context import Occasion, StageContext, run_job_stage
from orchestrator.stages.snapshots import publish_snapshots
from orchestrator.store import ledger


def train_policy(
    occasion: Occasion,
    initial_id: int,
    preference_model_id: int,
    prompt_set_id: int,
    watcher_id: int | None = None,
    *,
    fresh: bool = False,
) -> int:
    """PPO from the initial policy against the preference model; its twin, where there is one, watches.

    Returns the snapshot's artifact. Those that the run kept on its way (`ppo.snapshots`) become artifacts too.
    """
    with StageContext(occasion, "train_policy") as context:
        config = context.config
        snapshot_id = run_job_stage(
            context,
            kind="snapshot",
            job="train_policy",
            inputs={"initial": initial_id, "preference_model": preference_model_id, "prompts": prompt_set_id}
            | _watched(watcher_id)
            | _held_out_comparisons(context, preference_model_id),
            settings=told(config.ppo, PPOSettings) | told(config.prompts, PPOSettings),
            fresh=fresh,
        )
        publish_snapshots(context, snapshot_id)
        return snapshot_id


def evaluate_policy(
    occasion: Occasion,
    policy_id: int,
    initial_id: int,
    preference_model_id: int,
    prompt_set_id: int,
    watcher_id: int | None = None,
    *,
    best_of: int = 1,
    fresh: bool = False,
) -> int:
    """Score a policy's replies to the held-out prompts; `best_of` n keeps the best of n. Returns the evaluation."""
    name = "evaluate_policy" if best_of == 1 else f"evaluate_best_of_{best_of}"
    with StageContext(occasion, name) as context:
        section = context.config.evaluation
        settings = told(section, JudgedReplies) | {"best_of": best_of}
        if best_of > 1:
            settings["num_prompts"] = min(section.num_prompts, section.best_of_prompts)
            if section.best_of_points:
                settings["best_of_points"] = list(section.best_of_points)
        evaluation_id = run_job_stage(
            context,
            kind="evaluation",
            job="evaluate",
            inputs={
                "policy": policy_id,
                "initial": initial_id,
                "preference_model": preference_model_id,
                "prompts": prompt_set_id,
            }
            | _watched(watcher_id),
            settings=settings,
            fresh=fresh,
        )
        kind = "policy" if best_of == 1 else "best_of_n"
        context.record_evaluation(kind, policy_id, context.results(evaluation_id), evaluation_id)
        return evaluation_id


def evaluations_of(cycle_id: int, *policy_ids: int) -> list[int]:
    """The evaluations of these policies in this cycle, the newest of each, in the order asked for.

    Evaluations run at the same time, so that the order in which they were begun says nothing.
    """
    with database() as session:
        newest = (
            select(t.Evaluation.subject_id, func.max(t.Evaluation.id).label("id"))
            .where(t.Evaluation.cycle_id == cycle_id, t.Evaluation.kind == "policy")
            .group_by(t.Evaluation.subject_id)
            .subquery()
        )
        rows = session.execute(
            select(t.Evaluation.subject_id, t.Evaluation.artifact_id).join(newest, newest.c.id == t.Evaluation.id)
        )
        found = {row.subject_id: row.artifact_id for row in rows}
    return [found[policy_id] for policy_id in policy_ids]


def _watched(watcher_id: int | None) -> dict[str, int]:
    """The twin's role among a job's inputs, where there is one."""
    return {} if watcher_id is None else {"watcher": watcher_id}


def _held_out_comparisons(context: StageContext, preference_model_id: int) -> dict[str, int]:
    """The comparison set of the preference model: its held-out part watches PPO (mean log-p accuracy)."""
    if context.config.ppo.logp_every == 0:
        return {}
    with context.session() as session:
        parents = ledger.inputs_of(session, preference_model_id)
    return {role: parents[role] for role in ("comparisons",) if role in parents}
