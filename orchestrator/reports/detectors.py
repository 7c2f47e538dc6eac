"""Rows of a report on a detector of far requests."""

from __future__ import annotations

from typing import Any

from orchestrator.reports.wording import SHARE, with_interval


def detector_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Rows of the cycle report: what the detector that the cycle fitted is worth, and how it comes before the policies.

    `found` are the results of the job with the artifact's `digest`; None where the cycle fitted none.
    """
    if found is None:
        return []
    alarms = found["false_alarms"]
    rows = [
        (
            "Detector of far requests",
            f"{found['kind']} on layer {found['layer']}; {_beyond(alarms)} of unseen prompts of home lie beyond its "
            f"threshold (n = {alarms['n']})",
        )
    ]
    if "others" in found:
        others = found["others"]
        rows.append(
            (
                "… prompts of the other kind",
                f"{_beyond(others)} beyond it (n = {others['n']}); AUROC {others['auroc']:.3f}, of the length alone "
                f"{others['length_auroc']:.3f}",
            )
        )
    if "examples" in found:
        told = found["examples"]
        auroc = told["auroc_by_layer"].get(str(found["layer"]))
        rows.append(
            (
                "… examples",
                f"{'AUROC not measured' if auroc is None else f'AUROC {auroc:.3f}'}, of the length alone "
                f"{told['length_auroc']:.3f}",
            )
        )
    return [*rows, ("… before the policies", f"`orchestrator serve-policy --gate {found['digest']}`")]


def _beyond(numbers: dict[str, Any]) -> str:
    return with_interval(numbers["share"], numbers["ci"], SHARE)
