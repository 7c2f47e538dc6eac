"""Pictures of a preference model: reliability, accuracy by group and threshold, scores, scaling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from models.statistics.logistic import sigmoid
from orchestrator.judging.forecasts import says_nothing
from orchestrator.reports.pictures.style import (
    BLUE,
    GREEN,
    GREY,
    PANEL_INCHES,
    PURPLE,
    SMALL,
    VERMILION,
    errorbars,
    finish,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Bars of raters beyond these would be thinner than their names.
MAX_RATERS = 8
# The interval of a smaller group spans the picture and says nothing; report.json has it.
MIN_GROUP_PAIRS = 5


def held_out(numbers: dict[str, Any]) -> dict[str, Any]:
    """What the cycle's preference model reports about the held-out comparisons; empty where there is none."""
    found: dict[str, Any] = (numbers.get("preference_model") or {}).get("held_out") or {}
    return found


def reliability(numbers: dict[str, Any]) -> Figure | None:
    """Accuracy against the score gap, beside what the gap says."""
    calibration = held_out(numbers).get("calibration") or {}
    bins = calibration.get("bins")
    if not bins:
        return None
    figure, [axes] = new_figure()
    highest = bins[-1]["mean_gap"] * 1.08 or 1.0
    line = [highest * k / 100 for k in range(101)]
    axes.plot(line, [sigmoid(x) for x in line], "--", color=GREY, linewidth=1.2, label="calibrated: 1 / (1 + e^-gap)")
    errorbars(axes, [b["mean_gap"] for b in bins], bins, fmt="o", color=BLUE, label="held-out, 95 % interval")
    axes.set_xlim(0, highest)
    axes.set_ylim(min(0.4, *(b["ci"][0] for b in bins)) - 0.02, 1.02)
    error = f"calibration error {calibration['expected_calibration_error']:.3f}"
    if calibration["slope"] is not None:
        error += f", slope {calibration['slope']:.2f}"
    finish(axes, f"Reliability: {error}", "score gap, PM units", "share ordered rightly", legend="below")
    return figure


def accuracy_by_group(numbers: dict[str, Any]) -> Figure | None:
    """Accuracy with its interval by question, tranche, source, turn and rater."""
    report = held_out(numbers)
    rows = list(_groups(report))
    if not rows:
        return None
    figure, [axes] = new_figure(height=max(2.4, 1.1 + 0.19 * len(rows)))
    overall = report["accuracy"]
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1, label="chance")
    axes.axvline(overall, color=VERMILION, linewidth=1.2, label="all together")
    places = range(len(rows), 0, -1)
    entries = [entry for _, entry in rows]
    values = [entry["accuracy"] for entry in entries]
    below = [value - entry["ci"][0] for value, entry in zip(values, entries, strict=True)]
    above = [entry["ci"][1] - value for value, entry in zip(values, entries, strict=True)]
    axes.errorbar(values, list(places), xerr=[below, above], fmt="o", color=BLUE, markersize=4, capsize=2, linewidth=1)
    axes.set_yticks(list(places), [f"{name} (n = {entry['n']})" for name, entry in rows])
    axes.set_ylim(0.3, len(rows) + 0.7)
    axes.set_xlim(max(0.0, min(0.4, *(entry["ci"][0] for entry in entries)) - 0.02), 1.0)
    finish(axes, f"All together: {overall:.3f}", "share ordered rightly", "", legend="below")
    axes.tick_params(axis="y", labelsize=SMALL - 1)
    return figure


def _groups(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and entry of every bar; a grouping with one group only says what the overall figure says."""
    for key, word in (
        ("by_question", ""),
        ("by_tranche", ""),
        ("by_source", ""),
        ("by_turn", "turn "),
        ("by_rater", ""),
    ):
        groups = report.get(key) or {}
        if len(groups) < 2:
            continue
        items = list(groups.items())
        if key == "by_rater":
            items = sorted(items, key=lambda item: (-item[1]["n"], item[0]))[:MAX_RATERS]
            # Not the handle: a picture can't be rewritten when its rater is erased.
            word = "rater id "
        for name, entry in items:
            if entry["n"] < MIN_GROUP_PAIRS:
                continue
            yield word + _short(name), entry


def accuracy_by_threshold(numbers: dict[str, Any]) -> Figure | None:
    """Accuracy on pairs of which both replies score above a threshold."""
    curves = held_out(numbers).get("threshold_curve") or {}
    curve = curves.get("all")
    if not curve or len(curve) < 2:
        return None
    figure, [axes] = new_figure()
    x = [entry["threshold"] for entry in curve]
    axes.fill_between(x, [e["ci"][0] for e in curve], [e["ci"][1] for e in curve], color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(
        x, [e["accuracy"] for e in curve], "o-", color=BLUE, markersize=4, linewidth=1.4, label="all, 95 % interval"
    )
    tranches = {name: part for name, part in (curves.get("by_tranche") or {}).items() if len(part) > 1}
    if len(tranches) > 1:
        styles = ((VERMILION, "s--"), (GREEN, "^:"), (PURPLE, "D-."), (GREY, "v--"))
        for (name, part), (colour, style) in zip(sorted(tranches.items()), styles, strict=False):
            values = [e["accuracy"] for e in part]
            axes.plot(
                [e["threshold"] for e in part], values, style, color=colour, markersize=3, linewidth=1, label=name
            )
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
    finish(
        axes,
        "Accuracy where both replies score above t",
        "t, PM units above the mean held-out score",
        "share ordered rightly",
        legend="best",
    )
    return figure


def score_histograms(numbers: dict[str, Any]) -> Figure | None:
    """How the better and the worse replies of the held-out comparisons score, by tranche where there are several."""
    histograms = held_out(numbers).get("histograms")
    if not histograms:
        return None
    by_tranche = histograms["by_tranche"]
    groups = by_tranche if len(by_tranche) > 1 else {"held-out comparisons": histograms["all"]}
    figure, panels = new_figure(len(groups), 2.2 if len(groups) > 1 else PANEL_INCHES[1])
    for axes, (name, counts) in zip(panels, groups.items(), strict=True):
        _better_and_worse(axes, histograms["edges"], counts)
        finish(
            axes,
            f"{name} (n = {sum(counts['better'])})",
            "score above the mean, PM units",
            "share of replies",
            legend="best",
        )
    return figure


def policy_scores(numbers: dict[str, Any]) -> Figure | None:
    """The policy's scores laid over those of the preference model's data, helpful and red-team prompts apart."""
    report, scores = held_out(numbers), numbers.get("policy_scores") or {}
    histograms = report.get("histograms")
    kinds = [kind for kind in ("helpful", "harmless") if scores.get("snapshot", {}).get(kind)]
    if not histograms or not kinds:
        return None
    figure, panels = new_figure(len(kinds), 2.6)
    for axes, kind in zip(panels, kinds, strict=True):
        edges = histograms["edges"]
        counts = histograms["by_question"].get(kind)
        if counts is not None:
            _better_and_worse(axes, edges, counts)
        for who, colour, style in (("initial", GREY, "--"), ("snapshot", "black", "-")):
            values = [score - report["mean_score"] for score in scores.get(who, {}).get(kind, [])]
            if values:
                label = "initial policy" if who == "initial" else "new policy"
                _outline(axes, values, edges[1] - edges[0], edges[0], color=colour, linestyle=style, label=label)
        title = "Helpful prompts" if kind == "helpful" else "Red-team prompts"
        finish(axes, title, "score above the data's mean, PM units", "share of replies", legend="best")
    return figure


def scaling(numbers: dict[str, Any]) -> Figure | None:
    """Accuracy against the number of comparisons, with the fitted line and what twice as many would give."""
    found = numbers.get("scaling")
    if not found or len(found["points"]) < 2:
        return None
    figure, [axes] = new_figure()
    points, last = found["points"], found["points"][-1]
    for size, marker in zip(sorted({point["parameters"] for point in points}), "os^Dv*P", strict=False):
        same = [point for point in points if point["parameters"] == size]
        label = f"{size / 1e6:.2g} M parameters"
        errorbars(axes, [p["comparisons"] for p in same], same, fmt=marker, color=BLUE, label=label)
    furthest = last["comparisons"]
    forecast = found["forecast"]["twice_the_comparisons"]
    if forecast is not None and not says_nothing(forecast):
        nearest = min(p["comparisons"] for p in points if p["parameters"] == last["parameters"])
        furthest = 2 * found["comparisons"]
        # A line in ln(comparisons): the gain of one doubling gives it backwards too.
        at_first = forecast["accuracy"]["value"] - forecast["gain"]["value"] * math.log2(furthest / nearest)
        line = [at_first, forecast["accuracy"]["value"]]
        axes.plot([nearest, furthest], line, "--", color=GREY, linewidth=1.2, label="fit")
        entry = {"accuracy": forecast["accuracy"]["value"], "ci": forecast["accuracy"]["ci"]}
        errorbars(axes, [furthest], [entry], fmt="*", color=VERMILION, label="twice as many")
    axes.set_xscale("log")
    ticks = _ticks(min(p["comparisons"] for p in points), furthest)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.0, high))
    finish(axes, "Accuracy against comparisons", "comparisons trained on", "share ordered rightly", legend="best")
    return figure


def _ticks(low: float, high: float) -> list[int]:
    """At most six round numbers that cover [low, high]."""
    steps = [base * 10**power for power in range(10) for base in (1, 2, 5)]
    inside = [step for step in steps if 0.9 * low <= step <= 1.1 * high]
    return inside[:: -(-len(inside) // 6)] if inside else [round(low), round(high)]


def _better_and_worse(axes: Axes, edges: Sequence[float], counts: dict[str, list[int]]) -> None:
    for side, colour, hatch in (("worse", VERMILION, "////"), ("better", BLUE, None)):
        total = sum(counts[side]) or 1
        axes.stairs(
            [count / total for count in counts[side]],
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
