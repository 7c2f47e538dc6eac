"""The stages of a cycle. Each takes ids and returns ids; nothing else crosses a stage boundary.

A stage first asks the ledger for an artifact with its fingerprint (kind, settings and the digests of its inputs) and
returns what it finds; so a cycle that was interrupted is resumed by running it again from the top. How the stages
follow each other is in `flows/cycle.py`; what runs one of them is in `orchestrator/stages/context.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from db import tables as t
from orchestrator import distillation
from orchestrator.cycles.record import (
    anything_live,
    close_cycle,
    cycle_config,
    cycle_number,
    database,
    fresh_comparisons,
    open_cycle,
    open_cycle_id,
)
from orchestrator.data import check, freeze
from orchestrator.data.ranked_answers import pretrained_trunk
from orchestrator.judging.orientation import orientation_pairs, wrong_signs
from orchestrator.preference_inputs import preference_model_inputs
from orchestrator.reports.cycle import write_report
from orchestrator.stages import initial_policy
from orchestrator.stages.context import Occasion, StageContext, build, run_job_stage
from orchestrator.stages.detectors import fit_ood_detector
from orchestrator.stages.elo import measure_elo
from orchestrator.stages.named_inputs import check_named_inputs
from orchestrator.stages.promotion import decide_promotion, deploy_initial_policy, promote, put_before_people, refusal
from orchestrator.stages.snapshots import publish_snapshots
from orchestrator.store import ledger

__all__ = [
    "anything_live",
    "build_prompts",
    "check_data",
    "check_named_inputs",
    "check_preference_model",
    "close_cycle",
    "cycle_config",
    "cycle_number",
    "decide_promotion",
    "deploy_initial_policy",
    "evaluate_policy",
    "evaluations_of",
    "fit_ood_detector",
    "freeze_comparisons",
    "fresh_comparisons",
    "measure_elo",
    "open_cycle",
    "open_cycle_id",
    "prepare_initial_policy",
    "pretrain_preference_model",
    "promote",
    "put_before_people",
    "refusal",
    "train_policy",
    "train_preference_model",
    "train_watcher",
    "write_prompts",
    "write_report",
]


def prepare_initial_policy(cycle_id: Occasion, *, fresh: bool = False) -> int:
    """The frozen start of every policy: pretrained here, or a Hugging Face model made ready; and distilled where asked.

    Returns its artifact.
    """
    with StageContext(cycle_id, "prepare_initial_policy") as context:
        section = context.config.initial_policy
        if section.pretrain is None:
            prepared_id = initial_policy.from_hugging_face(context, section, fresh=fresh)
        else:
            prepared_id = initial_policy.pretrained(context, section.pretrain, fresh=fresh)
        if section.distill is None:
            return prepared_id
        return distillation.distilled(context, section, prepared_id, fresh=fresh)


def freeze_comparisons(cycle_id: int, *, fresh: bool = False) -> int:
    """Take every comparison committed so far (once per cycle) and write the comparison set. Returns its artifact."""
    with StageContext(cycle_id, "freeze_comparisons") as context:
        section = context.config.comparisons
        with context.session() as session:
            frozen = freeze.freeze(session, cycle_id)
            freeze_id = frozen.id
            previous = freeze.previous_comparison_set(session, freeze_id, section)

        def write(out: Path) -> dict[str, Any]:
            earlier = context.store.fetch(previous.digest) if previous is not None else None
            return freeze.build_comparison_set(context.engine, freeze_id, section, earlier, out)

        # What a freeze holds never changes, so its id stands for its content, within one database.
        settings = section.selection() | {"freeze_id": freeze_id, "freeze": freeze.freeze_digest(frozen)}
        return build(context, "comparison_set", settings, {}, write, fresh=fresh)


def check_data(cycle_id: int, comparison_set_id: int, *, fresh: bool = False) -> int:
    """Count repeats in the comparison set, and texts of the configured evaluation files. Returns its artifact."""
    with StageContext(cycle_id, "check_data") as context:
        files = [Path(file) for file in context.config.comparisons.check_against]
        settings = {"against": [[check.name_of(file), freeze.file_digest(file)] for file in files]}

        def write(out: Path) -> dict[str, Any]:
            return check.check_comparison_set(context.fetch(comparison_set_id), files, out)

        return build(context, "data_check", settings, {"comparisons": comparison_set_id}, write, fresh=fresh)


def pretrain_preference_model(cycle_id: Occasion, initial_id: int, *, fresh: bool = False) -> int:
    """Train a trunk for preference models on ranked public answers, from the initial policy's. Returns its artifact."""
    with StageContext(cycle_id, "pretrain_preference_model") as context:
        return pretrained_trunk(context, initial_id, fresh=fresh)


def train_preference_model(
    cycle_id: Occasion, comparison_set_id: int, initial_id: int, pmp_id: int | None = None, *, fresh: bool = False
) -> int:
    """Train the preference model on the comparison set, from the initial policy's trunk or that of PMP.

    Returns its artifact.
    """
    with StageContext(cycle_id, "train_preference_model") as context:
        return run_job_stage(
            context,
            kind="preference_model",
            job="train_preference_model",
            inputs=preference_model_inputs(context, comparison_set_id, initial_id, pmp_id, fresh=fresh),
            settings=context.config.preference_model.model_dump(mode="json", exclude={"skills"}),
            fresh=fresh,
        )


def train_watcher(
    cycle_id: Occasion,
    comparison_set_id: int,
    initial_id: int,
    preference_model_id: int,
    pmp_id: int | None = None,
    *,
    fresh: bool = False,
) -> int:
    """Train the preference model's twin on the comparisons that were left for it. Returns its artifact."""
    with StageContext(cycle_id, "train_watcher") as context:
        inputs = preference_model_inputs(context, comparison_set_id, initial_id, pmp_id, fresh=fresh)
        return run_job_stage(
            context,
            kind="preference_model",
            job="train_preference_model",
            inputs=inputs | {"production": preference_model_id},
            settings=context.config.preference_model.model_dump(mode="json", exclude={"skills"}) | {"part": "watcher"},
            fresh=fresh,
        )


def check_preference_model(cycle_id: Occasion, preference_model_id: int, *, fresh: bool = False) -> int | None:
    """Record the PM's held-out accuracy, and stop the cycle where a sign is the wrong way round.

    Looked at are the orientation pairs, all and by question, and the held-out comparisons of each source. Returns the
    evaluation artifact of the orientation check, or None where the configuration turns it off.

    Raises:
        CycleError: an accuracy's interval lies below one half; the message names what is turned round.
    """
    with StageContext(cycle_id, "check_preference_model") as context:
        results = context.results(preference_model_id)
        context.record_evaluation("preference_model", preference_model_id, results)
        file = context.config.orientation.file
        pairs = orientation_pairs(context.config.orientation)
        evaluation_id, numbers = None, None
        if pairs is not None:
            pairs_id = build(
                context,
                "orientation_pairs",
                {"file": freeze.file_digest(pairs)},
                {},
                lambda out: freeze.write_orientation_pairs(pairs, out),
                fresh=fresh,
            )
            evaluation_id = run_job_stage(
                context,
                kind="evaluation",
                job="check_preference_model",
                inputs={"preference_model": preference_model_id, "pairs": pairs_id},
                settings={"threads": context.config.preference_model.threads},
                fresh=fresh,
            )
            numbers = context.results(evaluation_id)
            context.record_evaluation("orientation", preference_model_id, numbers, evaluation_id)
        judge_sources = context.config.orientation.contradicting_source == "stop"
        held_out = results["held_out"]
        sources = results.get("skills", {}).get("by_source", {}) | held_out["by_source"]
        wrong = wrong_signs(held_out | {"by_source": sources}, numbers, file, sources=judge_sources)
        if wrong:
            context.fail(
                f"A sign is wrong: {'; '.join(wrong)}. Look at the question and side of the newest comparisons, and at "
                "the orientation pairs; PPO was not started."
            )
        return evaluation_id


def build_prompts(cycle_id: Occasion, comparison_set_id: int, *, fresh: bool = False) -> int:
    """The prompts of the PM's training part, and those to judge on. Returns the prompt set's artifact."""
    with StageContext(cycle_id, "build_prompts") as context:
        section = context.config.prompts
        extra = {
            name: Path(file)
            for name, file in (("train", section.train_file), ("held_out", section.held_out_file))
            if file is not None
        }
        settings = {f"{name}_file": freeze.file_digest(file) for name, file in extra.items()}

        def write(out: Path) -> dict[str, Any]:
            comparisons = context.fetch(comparison_set_id)
            return freeze.build_prompt_set(
                comparisons, out, train_file=extra.get("train"), held_out_file=extra.get("held_out")
            )

        return build(context, "prompt_set", settings, {"comparisons": comparison_set_id}, write, fresh=fresh)


def write_prompts(cycle_id: int, initial_id: int, prompt_set_id: int, *, fresh: bool = False) -> int:
    """Let the initial policy write more training prompts after people's. Returns the larger prompt set's artifact."""
    with StageContext(cycle_id, "write_prompts") as context:
        section = context.config.prompts
        return run_job_stage(
            context,
            kind="prompt_set",
            job="write_prompts",
            inputs={"policy": initial_id, "prompts": prompt_set_id},
            settings={
                "num_written": section.written,
                "num_examples": section.written_examples,
                "max_prompt_tokens": section.written_max_tokens,
                "threads": context.config.ppo.threads,
            },
            fresh=fresh,
        )


def train_policy(
    cycle_id: Occasion,
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
    with StageContext(cycle_id, "train_policy") as context:
        config = context.config
        snapshot_id = run_job_stage(
            context,
            kind="snapshot",
            job="train_policy",
            inputs={"initial": initial_id, "preference_model": preference_model_id, "prompts": prompt_set_id}
            | _watched(watcher_id)
            | _held_out_comparisons(context, preference_model_id),
            settings=config.ppo.model_dump() | {"harmless_weight": config.prompts.harmless_weight},
            fresh=fresh,
        )
        publish_snapshots(context, snapshot_id)
        return snapshot_id


def evaluate_policy(
    cycle_id: Occasion,
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
    with StageContext(cycle_id, name) as context:
        section = context.config.evaluation
        settings = section.model_dump(exclude={"best_of", "best_of_prompts", "best_of_points"}) | {"best_of": best_of}
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
