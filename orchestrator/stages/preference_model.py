"""Stages that make preference models: pre-training, training, the watcher, the checks before PPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select

from db import tables as t
from models.preference.results import OrderedPairs, PreferenceModelResults
from models.preference.settings import PreferenceModelSettings, RankingSettings
from models.runtime.results import part_to_json, result_from_json
from orchestrator.config import told
from orchestrator.data import named_files, pair_set
from orchestrator.data.named_files import file_digest
from orchestrator.data.pair_set import orientation_pairs
from orchestrator.data.ranked_answers import write_pmp_pairs
from orchestrator.data.reference_set import choose, reference_set_from_file
from orchestrator.data.skills import write_skill_set
from orchestrator.judging.orientation import wrong_signs
from orchestrator.stages.context import Occasion, StageContext, build, run_job_stage


def pretrained_trunk(context: StageContext, initial_id: int, *, fresh: bool) -> int:
    """The preference model whose trunk was trained on the ranked answers of `[pmp]`; its artifact."""
    section = context.config.pmp
    files = [Path(name) for name in section.files]
    pairs_id = build(
        context,
        "pmp_pairs",
        {
            "files": [file_digest(file) for file in files],
            "pairs": section.pairs,
            "held_out_fraction": section.held_out_fraction,
        },
        {},
        lambda out: part_to_json(write_pmp_pairs(files, section, out)),
        fresh=fresh,
    )
    return run_job_stage(
        context,
        kind="pmp_model",
        job="train_preference_model",
        inputs={"initial": initial_id, "comparisons": pairs_id},
        settings=told(section, RankingSettings),
        fresh=fresh,
    )


def reference_set(context: StageContext, comparison_set_id: int) -> int:
    """The project's reference set: that of `reference.file`, else the one found in the ledger, else chosen now.

    What of a set was erased can't be read any more; then the next cycle chooses another, and says so by its digest.
    """
    section = context.config.reference
    if section.file is not None:
        file = Path(section.file)
        settings: Mapping[str, object] = {"file": named_files.file_digest(file)}
        return build(context, "reference_set", settings, {}, lambda out: reference_set_from_file(file, out))
    settings = {"project": context.config.name, "pairs": section.pairs}
    query = (
        select(t.Artifact.id)
        .where(t.Artifact.kind == "reference_set", t.Artifact.settings == settings)
        .where(t.Artifact.digest.not_in(select(t.ErasedArtifact.digest)))
        .order_by(t.Artifact.id)
        .limit(1)
    )
    with context.session() as session:
        found = session.scalars(query).first()
    if found is not None:
        return found
    inputs = {"comparisons": comparison_set_id}
    return build(
        context,
        "reference_set",
        settings,
        inputs,
        lambda out: choose(context.fetch(comparison_set_id), section.pairs, out),
    )


def pretrain_preference_model(occasion: Occasion, initial_id: int, *, fresh: bool = False) -> int:
    """Train a trunk for preference models on ranked public answers, from the initial policy's. Returns its artifact."""
    with StageContext(occasion, "pretrain_preference_model") as context:
        return pretrained_trunk(context, initial_id, fresh=fresh)


def train_preference_model(
    occasion: Occasion, comparison_set_id: int, initial_id: int, pmp_id: int | None = None, *, fresh: bool = False
) -> int:
    """Train the preference model on the comparison set, from the initial policy's trunk or that of PMP.

    Returns its artifact.
    """
    with StageContext(occasion, "train_preference_model") as context:
        return run_job_stage(
            context,
            kind="preference_model",
            job="train_preference_model",
            inputs=preference_model_inputs(context, comparison_set_id, initial_id, pmp_id, fresh=fresh),
            settings=told(context.config.preference_model, PreferenceModelSettings),
            fresh=fresh,
        )


def train_watcher(
    occasion: Occasion,
    comparison_set_id: int,
    initial_id: int,
    preference_model_id: int,
    pmp_id: int | None = None,
    *,
    fresh: bool = False,
) -> int:
    """Train the preference model's twin on the comparisons that were left for it. Returns its artifact."""
    with StageContext(occasion, "train_watcher") as context:
        inputs = preference_model_inputs(context, comparison_set_id, initial_id, pmp_id, fresh=fresh)
        return run_job_stage(
            context,
            kind="preference_model",
            job="train_preference_model",
            inputs=inputs | {"production": preference_model_id},
            settings=told(context.config.preference_model, PreferenceModelSettings) | {"part": "watcher"},
            fresh=fresh,
        )


def check_preference_model(occasion: Occasion, preference_model_id: int, *, fresh: bool = False) -> int | None:
    """Record the PM's held-out accuracy, and stop the cycle where a sign is the wrong way round.

    Looked at are the orientation pairs, all and by question, and the held-out comparisons of each source. Returns the
    evaluation artifact of the orientation check, or None where the configuration turns it off.

    Raises:
        CycleError: an accuracy's interval lies below one half; the message names what is turned round.
    """
    with StageContext(occasion, "check_preference_model") as context:
        numbers = context.results(preference_model_id)
        context.record_evaluation("preference_model", preference_model_id, numbers)
        model = result_from_json(
            PreferenceModelResults, numbers, where=f"the results of preference model {preference_model_id}"
        )
        file = context.config.orientation.file
        pairs = orientation_pairs(context.config.orientation)
        evaluation_id, ordered = None, None
        if pairs is not None:
            pairs_id = build(
                context,
                "orientation_pairs",
                {"file": named_files.file_digest(pairs)},
                {},
                lambda out: pair_set.write_orientation_pairs(pairs, out),
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
            ordered = result_from_json(OrderedPairs, numbers, where=f"the results of evaluation {evaluation_id}")
        judge_sources = context.config.orientation.contradicting_source == "stop"
        skills = model.skills.by_source if model.skills is not None else {}
        judged = replace(model.held_out, by_source={**skills, **model.held_out.by_source})
        wrong = wrong_signs(judged, ordered, file, sources=judge_sources)
        if wrong:
            context.fail(
                f"A sign is wrong: {'; '.join(wrong)}. Look at the question and side of the newest comparisons, and at "
                "the orientation pairs; PPO was not started."
            )
        return evaluation_id


def preference_model_inputs(
    context: StageContext, comparison_set_id: int, initial_id: int, pmp_id: int | None, *, fresh: bool
) -> dict[str, int]:
    """The input artifacts of the training job by role; skills and reference set are built here where needed."""
    inputs = {
        "initial": initial_id,
        "comparisons": comparison_set_id,
        "reference": reference_set(context, comparison_set_id),
    }
    if pmp_id is not None:
        inputs["pmp"] = pmp_id
    skills = context.config.preference_model.skills
    if skills:
        fraction = context.config.comparisons.held_out_fraction
        skill_settings = [
            skill.model_dump(exclude={"file"}) | {"file": file_digest(Path(skill.file))} for skill in skills
        ]
        inputs["skills"] = build(
            context,
            "skill_set",
            {"skills": skill_settings, "held_out_fraction": fraction},
            {},
            lambda out: part_to_json(write_skill_set(skills, fraction, out)),
            fresh=fresh,
        )
    return inputs
