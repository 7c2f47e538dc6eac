"""The picture of the robustness experiment: what training and test preference model say along PPO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.judging.robustness import RobustnessNumbers
from orchestrator.reports.pictures.kl_law import draw_curve
from orchestrator.reports.pictures.style import finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CAPTION = (
    "Above: PM score against √KL while PPO ran, by the PM that it followed and by the watcher, which never saw the "
    "comparisons of the first. Below: how much more the policy gained by the first than by the second."
)


def gap_picture(numbers: RobustnessNumbers) -> Figure:
    """Both PMs' curves with the law's line, and under them the gap between their gains."""
    from orchestrator.reports.pictures.style import BLUE, GREY, PURPLE

    figure, [scores, gap] = new_figure(2, 2.9)
    title = draw_curve(scores, numbers.curve)
    finish(scores, title, "", "PM score", legend="above")
    curve = [(point, point.score_watcher) for point in numbers.curve if point.score_watcher is not None]
    gap.axhline(0, color=GREY, linestyle="--", linewidth=1)
    if curve:
        start, start_watched = curve[0]
        roots = [math.sqrt(max(0.0, point.kl_nats)) for point, _ in curve]
        gaps = [(point.score - start.score) - (watched - start_watched) for point, watched in curve]
        gap.plot(roots, gaps, "o", color=BLUE, markersize=3, label="training prompts")
    values = [row.gap.mean for row in numbers.policies]
    bounds = [[row.gap.ci[side] for row in numbers.policies] for side in (0, 1)]
    errors = [
        [0.0 if bound is None else abs(bound - value) for bound, value in zip(ends, values, strict=True)]
        for ends in bounds
    ]
    at = [math.sqrt(max(0.0, row.kl_nats)) for row in numbers.policies]
    gap.errorbar(at, values, yerr=errors, fmt="D", color=PURPLE, markersize=4, capsize=2.5, label="held-out prompts")
    opens = numbers.gap_opens
    title = "Gap: " + (f"open from KL {opens.kl_nats:.3g} nats on" if opens else "none that its interval shows")
    finish(gap, title, "√KL to the initial policy, √nat per reply", "gain by training − watcher", legend="above")
    return figure
