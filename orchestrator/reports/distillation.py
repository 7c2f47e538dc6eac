"""Rows of a report on context distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.initial_policy.results import DistillationCourse
from models.runtime.results import result_from_json


def course_of(results: Mapping[str, Any]) -> DistillationCourse | None:
    """The distillation in an initial policy's results; None where it was not distilled."""
    if "distillation_curve" not in results:
        return None
    return result_from_json(DistillationCourse, results, where="the results of the initial policy")


def distillation_rows(found: DistillationCourse | None) -> list[tuple[str, str]]:
    """The row of the report's table."""
    if found is None:
        return []
    return [
        (
            "Initial policy distilled",
            f"from the prompt {found.prompt_version}: KL {found.held_out_kl_before:.4g} to "
            f"{found.held_out_kl_after:.4g} nats per token in {found.num_tokens} tokens",
        )
    ]
