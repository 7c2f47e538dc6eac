"""PPO's course in the cycle report: score, KL and mean log-p accuracy against the replies learned from.

Drawn from a snapshot's results alone, so that it can be drawn again. Called by `orchestrator/pictures.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "PPO's course on its training prompts: PM score with the total reward r = score − λ·KL, KL to the initial policy, "
    "and the share of held-out comparisons whose better reply the policy finds likelier (dotted: the PM on the same). "
    "A grey line stands where a tripwire stopped it."
)
# Three of them above each other still fit a page.
PANEL_HEIGHT_INCHES = 1.9


def ppo_course(numbers: dict[str, Any]) -> Figure | None:
    """Small multiples over samples; None where the cycle trained no policy, or its curve has fewer than two points."""
    training = numbers.get("training") or {}
    curve = training.get("curve") or []
    if len(curve) < 2:
        return None
    # Here, because that module lists this picture among the report's.
    from orchestrator.pictures import BLUE, GREY, finish, new_figure

    accuracy = training.get("logp_accuracy") or {}
    with_accuracy = len(accuracy.get("curve") or []) > 1
    figure, panels = new_figure(3 if with_accuracy else 2, PANEL_HEIGHT_INCHES)
    if training.get("stopped"):
        for number, axes in enumerate(panels):
            # The first panel's legend says it for all.
            label = "_nolegend_" if number else "stopped"
            axes.axvline(training["samples"], color=GREY, linewidth=1.4, label=label)
    samples = [point["samples"] for point in curve]
    _draw_scores(panels[0], samples, curve, training.get("settings") or {})
    panels[1].plot(samples, [point["kl_nats"] for point in curve], "-", color=BLUE, linewidth=1.3)
    xlabel = "replies learned from"
    finish(panels[0], "Score and total reward", xlabel, "PM score", legend="best")
    finish(panels[1], "KL to the initial policy", xlabel, "nats per reply")
    if with_accuracy:
        _draw_accuracy(panels[2], accuracy)
        finish(panels[2], "Mean log-p accuracy, held-out comparisons", xlabel, "share", legend="best")
    return figure


def _draw_scores(
    axes: Axes, samples: Sequence[int], curve: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    from orchestrator.pictures import BLUE, GREEN, VERMILION

    axes.plot(samples, [point["score"] for point in curve], "-", color=BLUE, linewidth=1.3, label="training PM")
    watched = [(point["samples"], point["score_watcher"]) for point in curve if point.get("score_watcher") is not None]
    if watched:
        axes.plot(*zip(*watched, strict=True), "-.", color=GREEN, linewidth=1.3, label="watcher PM")
    kl_coef = settings.get("kl_coef")
    # A coefficient that follows the KL has another value at each point, which the results don't hold.
    if kl_coef and settings.get("kl_target_nats") is None:
        total = [point["score"] - kl_coef * point["kl_nats"] for point in curve]
        axes.plot(samples, total, "--", color=VERMILION, linewidth=1.3, label=f"r = score − {kl_coef:g}·KL")


def _draw_accuracy(axes: Axes, accuracy: Mapping[str, Any]) -> None:
    from orchestrator.pictures import BLUE, VERMILION

    looks = {"helpful": (BLUE, "o"), "harmless": (VERMILION, "s")}
    for kind, ceiling in sorted(accuracy["preference_model"].items(), reverse=True):
        colour, marker = looks[kind]
        points = [(point["samples"], point[kind]) for point in accuracy["curve"] if kind in point]
        axes.plot(*zip(*points, strict=True), f"{marker}-", color=colour, markersize=3, linewidth=1.2, label=kind)
        # Curves of before there were intervals have none.
        known = [point for point in accuracy["curve"] if kind in point.get("ci", {})]
        low, high = ([point["ci"][kind][end] for point in known] for end in (0, 1))
        axes.fill_between([point["samples"] for point in known], low, high, color=colour, alpha=0.12, linewidth=0)
        axes.axhline(ceiling, color=colour, linestyle=":", linewidth=1.2)
