"""Rows of a report on context distillation."""

from __future__ import annotations

from typing import Any


def distillation_numbers(results: dict[str, Any]) -> dict[str, Any] | None:
    """What the report keeps of an initial policy's results; None where it was not distilled."""
    if "distillation_curve" not in results:
        return None
    names = ("prompt_version", "held_out_kl_before", "held_out_kl_after", "num_tokens", "distillation_curve")
    return {name: results[name] for name in names}


def distillation_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The row of the report's table."""
    if not found:
        return []
    before, after = found["held_out_kl_before"], found["held_out_kl_after"]
    return [
        (
            "Initial policy distilled",
            f"from the prompt {found['prompt_version']}: KL {before:.4g} to {after:.4g} nats per token in "
            f"{found['num_tokens']} tokens",
        )
    ]
