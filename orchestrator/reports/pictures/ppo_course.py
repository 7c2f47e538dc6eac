"""PPO's course in the cycle report: score, KL, entropy, length and mean log-p accuracy against replies learned from.

Drawn from a snapshot's results alone, so that it can be drawn again. Called by
`orchestrator/reports/pictures/catalogue.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "PPO's course on its training prompts: PM score with the total reward r = score − λ·KL, KL to the initial policy, "
    "entropy, length of replies, and the share of held-out comparisons whose better reply the policy finds likelier, "
    "with its 95 % interval (dotted: the PM on the same). A grey line stands where a tripwire stopped it."
)
# Panels with several lines and a legend; those with a line alone are lower, so that five together still fit a page.
HIGH_INCHES, LOW_INCHES = 1.9, 1.4
# What every point of a curve has, where it is of today: key, title and unit of the panel, and whether its y axis begins
# at 0. Those that do would else show a change of a hundredth as high as one of a half.
SINGLE_LINES = (
    ("kl_nats", "KL to the initial policy", "nats per reply", False),
    ("entropy", "Entropy", "nats per token", True),
    ("reply_tokens", "Length of replies", "tokens", True),
)


def ppo_course(numbers: dict[str, Any]) -> Figure | None:
    """Small multiples over samples; None where the cycle trained no policy, or its curve has fewer than two points."""
    training = numbers.get("training") or {}
    curve = training.get("curve") or []
    if len(curve) < 2:
        return None
    # Here, because that module lists this picture among the report's.
    from orchestrator.reports.pictures.style import BLUE, GREY, finish, new_figure

    accuracy = training.get("logp_accuracy") or {}
    with_accuracy = len(accuracy.get("curve") or []) > 1
    # Curves of before they were kept have no entropy and no length.
    single = [line for line in SINGLE_LINES if all(line[0] in point for point in curve)]
    heights = [HIGH_INCHES, *[LOW_INCHES] * len(single), *[HIGH_INCHES] * with_accuracy]
    figure, panels = new_figure(len(heights), heights)
    if training.get("stopped"):
        for number, axes in enumerate(panels):
            # The first panel's legend says it for all.
            label = "_nolegend_" if number else "stopped"
            axes.axvline(training["samples"], color=GREY, linewidth=1.4, label=label)
    samples = [point["samples"] for point in curve]
    xlabel = "replies learned from"
    title = _draw_scores(panels[0], samples, curve, training.get("settings") or {})
    finish(panels[0], title, xlabel, "PM score", legend="best")
    for axes, (key, title, unit, from_zero) in zip(panels[1:], single, strict=False):
        axes.plot(samples, [point[key] for point in curve], "-", color=BLUE, linewidth=1.3)
        if from_zero:
            axes.set_ylim(0, 1.1 * max(point[key] for point in curve) or 1.0)
        finish(axes, title, xlabel, unit)
    if with_accuracy:
        _draw_accuracy(panels[-1], accuracy)
        finish(panels[-1], "Mean log-p accuracy, held-out comparisons", xlabel, "share", legend="below")
    return figure


def _draw_scores(
    axes: Axes, samples: Sequence[int], curve: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> str:
    """The scores and the total reward; returns the panel's title, which tells a coefficient that moved."""
    from orchestrator.reports.pictures.style import BLUE, GREEN, VERMILION

    axes.plot(samples, [point["score"] for point in curve], "-", color=BLUE, linewidth=1.3, label="training PM")
    watched = [(point["samples"], point["score_watcher"]) for point in curve if point.get("score_watcher") is not None]
    if watched:
        axes.plot(*zip(*watched, strict=True), "-.", color=GREEN, linewidth=1.3, label="watcher")
    # Curves of before it was kept have no coefficient; one that followed the KL is then not known.
    fixed = settings.get("kl_coef") if settings.get("kl_target_nats") is None else None
    known = [(point, point.get("kl_coef", fixed)) for point in curve]
    rewarded = [(point, kl_coef) for point, kl_coef in known if kl_coef is not None]
    if not any(kl_coef for _, kl_coef in rewarded):
        return "Score and total reward"
    first, last = rewarded[0][1], rewarded[-1][1]
    steady = all(kl_coef == first for _, kl_coef in rewarded)
    label = f"r = score − {first:g}·KL" if steady else "r = score − λ·KL"
    total = [point["score"] - kl_coef * point["kl_nats"] for point, kl_coef in rewarded]
    places = [point["samples"] for point, _ in rewarded]
    axes.plot(places, total, "--", color=VERMILION, linewidth=1.3, label=label)
    return "Score and total reward" + ("" if steady else f", λ from {first:.2g} to {last:.2g}")


def _draw_accuracy(axes: Axes, accuracy: Mapping[str, Any]) -> None:
    from orchestrator.reports.pictures.style import BLUE, GREY, VERMILION

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
    # One entry for the dotted lines of both kinds, which have the colours of their curves.
    axes.plot([], [], ":", color=GREY, linewidth=1.2, label="the PM on the same")
