"""The square-root law of a cycle: PM score against √KL, with the fitted line and best-of-n, and its rows in the report.

The fit is in `models/statistics/kl_law.py`. Called by `orchestrator/reports/cycle.py` with the cycle's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.policy.results import BestOfPoint, CurvePoint, Evaluation
from models.statistics.kl_law import NotIdentifiable
from orchestrator.judging.kl_law import law_of_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "PM score against √KL while PPO ran, on its training prompts. The line is the law score = r0 + a·√KL, drawn out "
    "where the curve keeps to it; crosses are the best of k replies of the initial policy, and the diamond is the new "
    "policy, both on held-out prompts."
)


def kl_law(curve: Sequence[CurvePoint], best_of: Evaluation | None, after: Evaluation | None) -> Figure | None:
    """PM score against √KL while PPO ran, with the best of k and the new policy; None for fewer than two points."""
    if len(curve) < 2:
        return None
    # Here, because that module lists this picture among the report's.
    from orchestrator.reports.pictures.style import finish, new_figure

    figure, [axes] = new_figure(height=3.9)
    title = draw_curve(axes, curve)
    _draw_held_out(axes, best_of, after)
    finish(axes, title, "√KL to the initial policy, √nat per reply", "PM score", legend="above")
    return figure


def draw_curve(axes: Axes, curve: Sequence[CurvePoint]) -> str:
    """The run's points, the watcher's where it has them, and the fitted line; returns the law in a line."""
    from orchestrator.reports.pictures.style import BLUE, GREEN, GREY, VERMILION

    roots = [math.sqrt(max(0.0, point.kl_nats)) for point in curve]
    axes.plot(roots, [point.score for point in curve], "o", color=BLUE, markersize=3.5, label="PPO, training PM")
    watched = [
        (root, point.score_watcher) for root, point in zip(roots, curve, strict=True) if point.score_watcher is not None
    ]
    if watched:
        axes.plot(*zip(*watched, strict=True), "s", color=GREEN, markersize=3.5, fillstyle="none", label="watcher")
    law = law_of_curve(curve)
    if isinstance(law, NotIdentifiable):
        return f"√KL law not identifiable: {law.reason}"
    first, last = math.sqrt(law.from_kl_nats), math.sqrt(law.to_kl_nats)
    end = max(roots)
    axes.plot([first, last], [law.at(first**2), law.at(last**2)], "-", color=VERMILION, linewidth=1.6, label="law")
    for x in ((0.0, first), (last, end)):
        if x[1] > x[0]:
            axes.plot(x, [law.at(x[0] ** 2), law.at(x[1] ** 2)], "--", color=VERMILION, linewidth=1)
    if law.departure is not None:
        axes.axvline(math.sqrt(law.departure.kl_nats), color=GREY, linestyle=":", linewidth=1.2, label="departure")
    return f"a = {law.slope:.3g} per √nat, R² = {law.r_squared:.3f}"


def _draw_held_out(axes: Axes, best: Evaluation | None, after: Evaluation | None) -> None:
    from orchestrator.reports.pictures.style import BLUE, SMALL

    # Without points of their own (`best_of_points`), the yardstick is one: its KL has log n − (n − 1)/n in it already.
    if best is not None:
        points = best.best_of_points or [BestOfPoint(best.best_of, best.kl_nats, best.pm_score, best.pm_score_ci)]
        _points(axes, points, fmt="x", color="black", markersize=5, label="best of k, held-out")
        for point in points:
            place = (math.sqrt(point.kl_nats), point.pm_score)
            axes.annotate(str(point.k), place, xytext=(5, -9), textcoords="offset points", fontsize=SMALL)
    if after is not None:
        _points(axes, [after], fmt="D", color=BLUE, fillstyle="none", label="new policy, held-out")


def _points(axes: Axes, points: Sequence[BestOfPoint | Evaluation], **style: Any) -> None:
    values = [point.pm_score for point in points]
    # One prompt alone has no interval.
    intervals = [point.pm_score_ci for point in points]
    low = [0.0 if low is None else value - low for value, (low, _) in zip(values, intervals, strict=True)]
    high = [0.0 if high is None else high - value for value, (_, high) in zip(values, intervals, strict=True)]
    roots = [math.sqrt(max(0.0, point.kl_nats)) for point in points]
    axes.errorbar(roots, values, yerr=[low, high], capsize=2.5, linewidth=1, **{"linestyle": "none"} | style)
