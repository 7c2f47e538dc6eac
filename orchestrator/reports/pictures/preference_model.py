"""Pictures of a preference model: reliability, accuracy by group and threshold, scores, scaling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models.preference.results import Accuracy, HeldOutReport, ScoreCounts, ThresholdPoint
from models.statistics.logistic import sigmoid
from orchestrator.judging.forecasts import Scaling, says_nothing
from orchestrator.reports.pictures.style import (
    BLUE,
    GREEN,
    GREY,
    PANEL_INCHES,
    PURPLE,
    SMALL,
    VERMILION,
    Bar,
    errorbars,
    finish,
    new_figure,
    value_and_error,
)
from orchestrator.reports.wording import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Bars of raters beyond these would be thinner than their names.
MAX_RATERS = 8
# The interval of a smaller group spans the picture and says nothing; report.json has it.
MIN_GROUP_PAIRS = 5


def reliability(found: HeldOutReport) -> Figure | None:
    """Accuracy against the score gap, beside what the gap says."""
    calibration = found.calibration
    if calibration is None or not calibration.bins:
        return None
    bins = calibration.bins
    figure, [axes] = new_figure()
    highest = bins[-1].mean_gap * 1.08 or 1.0
    line = [highest * k / 100 for k in range(101)]
    axes.plot(line, [sigmoid(x) for x in line], "--", color=GREY, linewidth=1.2, label="calibrated: 1 / (1 + e^-gap)")
    errorbars(axes, [b.mean_gap for b in bins], bins, fmt="o", color=BLUE, label="held-out, 95 % interval")
    axes.set_xlim(0, highest)
    axes.set_ylim(min(0.4, *(b.ci[0] for b in bins)) - 0.02, 1.02)
    error = f"calibration error {number(calibration.expected_calibration_error)}"
    if calibration.slope is not None:
        error += f", slope {calibration.slope:.2f}"
    finish(axes, f"Reliability: {error}", "score gap, PM units", "share ordered rightly", legend="below")
    return figure


def accuracy_by_group(found: HeldOutReport) -> Figure | None:
    """Accuracy with its interval by question, tranche, source, turn and rater."""
    rows = list(_groups(found))
    if not rows or found.accuracy is None:
        return None
    figure, [axes] = new_figure(height=max(2.4, 1.1 + 0.19 * len(rows)))
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1, label="chance")
    axes.axvline(found.accuracy, color=VERMILION, linewidth=1.2, label="all together")
    places = range(len(rows), 0, -1)
    groups = [group for _, group in rows]
    values, below, above = value_and_error(groups)
    axes.errorbar(values, list(places), xerr=[below, above], fmt="o", color=BLUE, markersize=4, capsize=2, linewidth=1)
    axes.set_yticks(list(places), [f"{name} (n = {group.n})" for name, group in rows])
    axes.set_ylim(0.3, len(rows) + 0.7)
    axes.set_xlim(max(0.0, min(0.4, *(group.ci[0] for group in groups)) - 0.02), 1.0)
    finish(axes, f"All together: {found.accuracy:.3f}", "share ordered rightly", "", legend="below")
    axes.tick_params(axis="y", labelsize=SMALL - 1)
    return figure


def _groups(found: HeldOutReport) -> Iterator[tuple[str, Accuracy]]:
    """Name and accuracy of every bar; a grouping with one group only says what the overall figure says."""
    for groups, word in (
        (found.by_question, ""),
        (found.by_tranche, ""),
        (found.by_source, ""),
        (found.by_turn, "turn "),
        (_most_held_out(found.by_rater), "rater id "),  # not the handle: a picture outlives its rater's erasure
    ):
        if len(groups) < 2:
            continue
        for name, group in groups.items():
            if group.n >= MIN_GROUP_PAIRS:
                yield word + _short(name), group


def _most_held_out(by_rater: Mapping[str, Accuracy]) -> dict[str, Accuracy]:
    """The raters with the most comparisons, of equals the one with the smaller id first."""
    ordered = sorted(by_rater.items(), key=lambda item: (-item[1].n, item[0]))
    return dict(ordered[:MAX_RATERS])


def accuracy_by_threshold(found: HeldOutReport) -> Figure | None:
    """Accuracy on pairs of which both replies score above a threshold."""
    curves = found.threshold_curve
    if curves is None or len(curves.all) < 2:
        return None
    figure, [axes] = new_figure()
    curve = curves.all
    x = [point.threshold for point in curve]
    low, high = [point.ci[0] for point in curve], [point.ci[1] for point in curve]
    axes.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(x, _accuracies(curve), "o-", color=BLUE, markersize=4, linewidth=1.4, label="all, 95 % interval")
    tranches = {name: part for name, part in curves.by_tranche.items() if len(part) > 1}
    if len(tranches) > 1:
        styles = ((VERMILION, "s--"), (GREEN, "^:"), (PURPLE, "D-."), (GREY, "v--"))
        for (name, part), (colour, style) in zip(sorted(tranches.items()), styles, strict=False):
            thresholds = [point.threshold for point in part]
            axes.plot(thresholds, _accuracies(part), style, color=colour, markersize=3, linewidth=1, label=name)
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
    finish(
        axes,
        "Accuracy where both replies score above t",
        "t, PM units above the mean held-out score",
        "share ordered rightly",
        legend="above",
    )
    return figure


def _accuracies(points: Sequence[ThresholdPoint]) -> list[float]:
    return value_and_error(points)[0]


def score_histograms(found: HeldOutReport) -> Figure | None:
    """How the better and the worse replies of the held-out comparisons score, by tranche where there are several."""
    histograms = found.histograms
    if histograms is None:
        return None
    by_tranche = histograms.by_tranche
    groups = by_tranche if len(by_tranche) > 1 else {"held-out comparisons": histograms.all}
    figure, panels = new_figure(len(groups), 2.2 if len(groups) > 1 else PANEL_INCHES[1])
    for axes, (name, counts) in zip(panels, groups.items(), strict=True):
        _better_and_worse(axes, histograms.edges, counts)
        finish(
            axes,
            f"{name} (n = {sum(counts.better)})",
            "score above the mean, PM units",
            "share of replies",
            legend="above",
        )
    return figure


Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Of the `initial` policy's and the `snapshot`'s replies on held-out prompts, by kind of prompt."""


def policy_scores(found: HeldOutReport, scores: Scores) -> Figure | None:
    """The policy's scores laid over those of the preference model's data, helpful and red-team prompts apart."""
    histograms = found.histograms
    kinds = [kind for kind in ("helpful", "harmless") if scores.get("snapshot", {}).get(kind)]
    if histograms is None or found.mean_score is None or not kinds:
        return None
    figure, panels = new_figure(len(kinds), 2.6)
    edges = histograms.edges
    for axes, kind in zip(panels, kinds, strict=True):
        counts = histograms.by_question.get(kind)
        if counts is not None:
            _better_and_worse(axes, edges, counts)
        for who, colour, style in (("initial", GREY, "--"), ("snapshot", "black", "-")):
            values = [score - found.mean_score for score in scores.get(who, {}).get(kind, [])]
            if values:
                label = "initial policy" if who == "initial" else "new policy"
                _outline(axes, values, edges[1] - edges[0], edges[0], color=colour, linestyle=style, label=label)
        title = "Helpful prompts" if kind == "helpful" else "Red-team prompts"
        finish(axes, title, "score above the data's mean, PM units", "share of replies", legend="above")
    return figure


def scaling(found: Scaling) -> Figure | None:
    """Accuracy against the number of comparisons, with the fitted line and what twice as many would give."""
    if len(found.points) < 2:
        return None
    figure, [axes] = new_figure()
    points, last = found.points, found.points[-1]
    for size, marker in zip(sorted({point.parameters for point in points}), "os^Dv*P", strict=False):
        same = [point for point in points if point.parameters == size]
        label = f"{size / 1e6:.2g} M parameters"
        errorbars(axes, [p.comparisons for p in same], same, fmt=marker, color=BLUE, label=label)
    furthest = last.comparisons
    forecast = found.forecast.twice_the_comparisons
    if forecast is not None and not says_nothing(forecast):
        nearest = min(p.comparisons for p in points if p.parameters == last.parameters)
        furthest = 2 * found.comparisons
        # A line in ln(comparisons): the gain of one doubling gives it backwards too.
        there = forecast.accuracy
        at_first = there.value - forecast.gain.value * math.log2(furthest / nearest)
        axes.plot([nearest, furthest], [at_first, there.value], "--", color=GREY, linewidth=1.2, label="fit")
        errorbars(axes, [furthest], [Bar(there.value, there.ci)], fmt="*", color=VERMILION, label="twice as many")
    axes.set_xscale("log")
    ticks = _ticks(min(p.comparisons for p in points), furthest)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.0, high))
    finish(axes, "Accuracy against comparisons", "comparisons trained on", "share ordered rightly", legend="above")
    return figure


def _ticks(low: float, high: float) -> list[int]:
    """At most six round numbers that cover [low, high]."""
    steps = [base * 10**power for power in range(10) for base in (1, 2, 5)]
    inside = [step for step in steps if 0.9 * low <= step <= 1.1 * high]
    return inside[:: -(-len(inside) // 6)] if inside else [round(low), round(high)]


def _better_and_worse(axes: Axes, edges: Sequence[float], counts: ScoreCounts) -> None:
    sides = (("worse", counts.worse, VERMILION, "////"), ("better", counts.better, BLUE, None))
    for side, numbers, colour, hatch in sides:
        total = sum(numbers) or 1
        axes.stairs(
            [count / total for count in numbers],
            edges,
            fill=True,
            facecolor=(colour, 0.35 if hatch is None else 0.15),
            edgecolor=colour,
            hatch=hatch,
            linewidth=0.8,
            label=f"{side} replies",
        )


def _outline(axes: Axes, values: Sequence[float], width: float, origin: float, **style: Any) -> None:
    """Share of the values in bins that go on where the data's end; a policy may score beyond them."""
    places = [int((value - origin) // width) for value in values]
    first, last = min(places), max(places)
    shares = [places.count(place) / len(places) for place in range(first, last + 1)]
    edges = [origin + width * place for place in range(first, last + 2)]
    axes.stairs(shares, edges, linewidth=1.5, **style)


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


ACCURACY_BY_GROUP = (
    "Preference model: held-out accuracy by group, with 95 % intervals. Raters stand by their id, which ends the "
    "address of their page at the desk (/desk/raters/ID)."
)
