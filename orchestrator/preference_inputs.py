"""What a preference model is trained from: comparisons, a start, the reference set, and extra skills."""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.freeze import file_digest
from orchestrator.data.reference_set import reference_set
from orchestrator.data.skills import write_skill_set
from orchestrator.stages.context import StageContext, build


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
        told = [skill.model_dump(exclude={"file"}) | {"file": file_digest(Path(skill.file))} for skill in skills]
        inputs["skills"] = build(
            context,
            "skill_set",
            {"skills": told, "held_out_fraction": fraction},
            {},
            lambda out: write_skill_set(skills, fraction, out),
            fresh=fresh,
        )
    return inputs
