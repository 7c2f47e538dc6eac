"""Rows of a report on a detector of far requests."""

from __future__ import annotations

from dataclasses import dataclass

from models.detectors.results import Beyond, DetectorResults
from orchestrator.reports.wording import SHARE, with_interval


@dataclass(frozen=True, kw_only=True)
class FittedDetector(DetectorResults):
    """The results of the job, with the digest of the artifact, by which `serve-policy` finds the detector."""

    digest: str


def detector_rows(found: FittedDetector | None) -> list[tuple[str, str]]:
    """Rows of the cycle report: what the detector that the cycle fitted is worth, and how it comes before the policies.

    None of them where the cycle fitted none.
    """
    if found is None:
        return []
    alarms, others, examples = found.false_alarms, found.others, found.examples
    rows = [
        (
            "Detector of far requests",
            f"{found.kind} on layer {found.layer}; {_beyond(alarms)} of unseen prompts of home lie beyond its "
            f"threshold (n = {alarms.n})",
        )
    ]
    if others is not None:
        rows.append(
            (
                "… prompts of the other kind",
                f"{_beyond(others)} beyond it (n = {others.n}); AUROC {others.auroc:.3f}, of the length alone "
                f"{others.length_auroc:.3f}",
            )
        )
    if examples is not None:
        auroc = examples.auroc_by_layer.get(str(found.layer))
        rows.append(
            (
                "… examples",
                f"{'AUROC not measured' if auroc is None else f'AUROC {auroc:.3f}'}, of the length alone "
                f"{examples.length_auroc:.3f}",
            )
        )
    return [*rows, ("… before the policies", f"`orchestrator serve-policy --detector {found.digest}`")]


def _beyond(numbers: Beyond) -> str:
    return with_interval(numbers.share, numbers.ci, SHARE)
