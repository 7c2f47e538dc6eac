"""PPO's course in the cycle report: score, KL, entropy, length and mean log-p accuracy against replies learned from.

Drawn from a snapshot's results alone, so that it can be drawn again. Called by
`orchestrator/reports/pictures/catalogue.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from models.policy.results import CurvePoint, LogpAccuracy, PPOResult

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


class _Line(NamedTuple):
    """A panel with one line."""

    title: str
    unit: str
    values: list[float]
    from_zero: bool
    """Whether its y axis begins at 0: else a change of a hundredth would look as high as one of a half."""


def ppo_course(training: PPOResult) -> Figure | None:
    """Small multiples over samples; None where the curve has fewer than two points."""
    curve = training.curve
    if len(curve) < 2:
        return None
    # Here, because that module lists this picture among the report's.
    from orchestrator.reports.pictures.style import BLUE, GREY, finish, new_figure

    accuracy = training.logp_accuracy if training.logp_accuracy and len(training.logp_accuracy.curve) > 1 else None
    single = _single_lines(curve)
    heights = [HIGH_INCHES, *[LOW_INCHES] * len(single), *[HIGH_INCHES] * (accuracy is not None)]
    figure, panels = new_figure(len(heights), heights)
    if training.stopped:
        for number, axes in enumerate(panels):
            # The first panel's legend says it for all.
            label = "_nolegend_" if number else "stopped"
            axes.axvline(training.samples, color=GREY, linewidth=1.4, label=label)
    samples = [point.samples for point in curve]
    xlabel = "replies learned from"
    title = _draw_scores(panels[0], samples, curve, training.fixed_kl_coef)
    finish(panels[0], title, xlabel, "PM score", legend="above")
    for axes, line in zip(panels[1:], single, strict=False):
        axes.plot(samples, line.values, "-", color=BLUE, linewidth=1.3)
        if line.from_zero:
            axes.set_ylim(0, 1.1 * max(line.values) or 1.0)
        finish(axes, line.title, xlabel, line.unit)
    if accuracy is not None:
        _draw_accuracy(panels[-1], accuracy)
        finish(panels[-1], "Mean log-p accuracy, held-out comparisons", xlabel, "share", legend="below")
    return figure


def _single_lines(curve: Sequence[CurvePoint]) -> list[_Line]:
    """KL, entropy and length; curves of before they were kept have no entropy and no length."""
    found = [_Line("KL to the initial policy", "nats per reply", [point.kl_nats for point in curve], from_zero=False)]
    for title, unit, values in (
        ("Entropy", "nats per token", [point.entropy for point in curve]),
        ("Length of replies", "tokens", [point.reply_tokens for point in curve]),
    ):
        known = [value for value in values if value is not None]
        if len(known) == len(curve):
            found.append(_Line(title, unit, known, from_zero=True))
    return found


def _draw_scores(axes: Axes, samples: Sequence[int], curve: Sequence[CurvePoint], fixed_kl_coef: float | None) -> str:
    """The scores and the total reward; returns the panel's title, which tells a coefficient that moved."""
    from orchestrator.reports.pictures.style import BLUE, GREEN, VERMILION

    axes.plot(samples, [point.score for point in curve], "-", color=BLUE, linewidth=1.3, label="training PM")
    watched = [(point.samples, point.score_watcher) for point in curve if point.score_watcher is not None]
    if watched:
        axes.plot(*zip(*watched, strict=True), "-.", color=GREEN, linewidth=1.3, label="watcher")
    # Curves of before it was kept have no coefficient; one that followed the KL is then not known.
    known = [(point, fixed_kl_coef if point.kl_coef is None else point.kl_coef) for point in curve]
    rewarded = [(point, kl_coef) for point, kl_coef in known if kl_coef is not None]
    if not any(kl_coef for _, kl_coef in rewarded):
        return "Score and total reward"
    first, last = rewarded[0][1], rewarded[-1][1]
    steady = all(kl_coef == first for _, kl_coef in rewarded)
    label = f"r = score − {first:g}·KL" if steady else "r = score − λ·KL"
    total = [point.score - kl_coef * point.kl_nats for point, kl_coef in rewarded]
    places = [point.samples for point, _ in rewarded]
    axes.plot(places, total, "--", color=VERMILION, linewidth=1.3, label=label)
    return "Score and total reward" + ("" if steady else f", λ from {first:.2g} to {last:.2g}")


def _draw_accuracy(axes: Axes, accuracy: LogpAccuracy) -> None:
    from orchestrator.reports.pictures.style import BLUE, GREY, VERMILION

    looks = {"helpful": (BLUE, "o"), "harmless": (VERMILION, "s")}
    for kind, ceiling in sorted(accuracy.preference_model.items(), reverse=True):
        colour, marker = looks[kind]
        points = [(point.samples, point.by_kind[kind]) for point in accuracy.curve if kind in point.by_kind]
        axes.plot(*zip(*points, strict=True), f"{marker}-", color=colour, markersize=3, linewidth=1.2, label=kind)
        # Curves of before there were intervals have none.
        known = [(point.samples, *point.ci[kind]) for point in accuracy.curve if point.ci and kind in point.ci]
        places, low, high = ([row[column] for row in known] for column in range(3))
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.axhline(ceiling, color=colour, linestyle=":", linewidth=1.2)
    # One entry for the dotted lines of both kinds, which have the colours of their curves.
    axes.plot([], [], ":", color=GREY, linewidth=1.2, label="the PM on the same")
