"""Stages that make the prompts of PPO: from the comparison set, and written by the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.policy.settings import WritingSettings
from orchestrator.config import told
from orchestrator.data import freeze, named_files
from orchestrator.stages.context import Occasion, StageContext, build, run_job_stage


def build_prompts(occasion: Occasion, comparison_set_id: int, *, fresh: bool = False) -> int:
    """The prompts of the PM's training part, and those to judge on. Returns the prompt set's artifact."""
    with StageContext(occasion, "build_prompts") as context:
        section = context.config.prompts
        extra = {
            name: Path(file)
            for name, file in (("train", section.train_file), ("held_out", section.held_out_file))
            if file is not None
        }
        settings = {f"{name}_file": named_files.file_digest(file) for name, file in extra.items()}

        def write(out: Path) -> Mapping[str, object]:
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
            settings=told(section.writing, WritingSettings) | {"threads": context.config.ppo.threads},
            fresh=fresh,
        )
