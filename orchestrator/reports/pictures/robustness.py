"""The picture of the robustness experiment: what training and test preference model say along PPO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from orchestrator.reports.pictures.kl_law import draw_curve
from orchestrator.reports.pictures.style import finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CAPTION = (
    "Above: PM score against √KL while PPO ran, by the PM that it followed and by the watcher, which never saw the "
    "comparisons of the first. Below: how much more the policy gained by the first than by the second."
)


def gap_picture(numbers: dict[str, Any]) -> Figure:
    """Both PMs' curves with the law's line, and under them the gap between their gains."""
    from orchestrator.reports.pictures.style import BLUE, GREY, PURPLE

    figure, [scores, gap] = new_figure(2, 2.9)
    title = draw_curve(scores, numbers["curve"])
    finish(scores, title, "", "PM score", legend="best")
    curve = [point for point in numbers["curve"] if point.get("score_watcher") is not None]
    gap.axhline(0, color=GREY, linestyle="--", linewidth=1)
    if curve:
        start = curve[0]
        roots = [math.sqrt(max(0.0, point["kl_nats"])) for point in curve]
        gaps = [
            (point["score"] - start["score"]) - (point["score_watcher"] - start["score_watcher"]) for point in curve
        ]
        gap.plot(roots, gaps, "o", color=BLUE, markersize=3, label="training prompts")
    rows = numbers["policies"]
    values = [row["gap"]["mean"] for row in rows]
    errors = [
        [0.0 if row["gap"]["ci"][side] is None else abs(row["gap"]["ci"][side] - row["gap"]["mean"]) for row in rows]
        for side in (0, 1)
    ]
    at = [math.sqrt(max(0.0, row["kl_nats"])) for row in rows]
    gap.errorbar(at, values, yerr=errors, fmt="D", color=PURPLE, markersize=4, capsize=2.5, label="held-out prompts")
    opens = numbers["gap_opens"]
    title = "Gap: " + (f"open from KL {opens['kl_nats']:.3g} nats on" if opens else "none that its interval shows")
    finish(gap, title, "√KL to the initial policy, √nat per reply", "gain by training − watcher", legend="best")
    return figure
