"""The weeks so far in one small picture: what people say of each snapshot, and how good its preference model was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.reports.weeks import Interval, Week

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "The weeks so far. Above: people's Elo of each cycle's snapshot against the initial policy, or, where people "
    "compared none, its gain by the preference model. Below: how many held-out comparisons the preference model orders "
    "rightly. Bars are 95 % intervals; hollow: refused."
)
PANEL_INCHES = 1.7

Figured = tuple[float | None, Interval | None]


def weeks_so_far(weeks: Sequence[Week]) -> Figure | None:
    """Two panels over the cycles; None before the first decision."""
    if not weeks:
        return None
    from orchestrator.reports.pictures.style import BLUE, GREEN, GREY, VERMILION, finish, new_figure

    figure, [gained, accuracy] = new_figure(2, PANEL_INCHES)
    by_people = any(week.elo is not None for week in weeks)
    _line(gained, weeks, _elo if by_people else _gain, BLUE, "o-", None)
    gained.axhline(0, color=GREY, linestyle="--", linewidth=1)
    title = "People's Elo against the initial policy" if by_people else "Score gain; people compared none yet"
    finish(gained, title, "", "Elo" if by_people else "PM units")
    _line(accuracy, weeks, _helpful, GREEN, "s-", "helpful")
    _line(accuracy, weeks, _harmless, VERMILION, "^-", "harmless")
    if not accuracy.containers:
        _line(accuracy, weeks, _all, GREEN, "s-", "all")
    accuracy.axhline(0.5, color=GREY, linestyle="--", linewidth=1, label="chance")
    # One cycle alone would stand on the edge.
    numbers = [week.cycle for week in weeks]
    accuracy.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    accuracy.set_xticks(numbers[:: -(-len(numbers) // 12)])
    finish(accuracy, "Preference model, held-out accuracy", "cycle", "share", legend="below")
    return figure


def _line(
    axes: Axes, weeks: Sequence[Week], figure: Callable[[Week], Figured], colour: str, form: str, label: str | None
) -> None:
    """The weeks that have this figure, with its interval; hollow where the snapshot was refused."""
    known = [(week, value, ci) for week in weeks for value, ci in [figure(week)] if value is not None]
    if not known:
        return
    x, y = [week.cycle for week, _, _ in known], [value for _, value, _ in known]
    below = [max(0.0, value - ci[0]) if ci else 0.0 for _, value, ci in known]
    above = [max(0.0, ci[1] - value) if ci else 0.0 for _, value, ci in known]
    axes.errorbar(x, y, yerr=[below, above], fmt=form, color=colour, markersize=5, capsize=2.5, label=label)
    refused = [(week.cycle, value) for week, value, _ in known if week.decision == "refuse"]
    if refused:
        axes.plot(*zip(*refused, strict=True), form[0], color="white", markersize=2.5, zorder=5)


def _elo(week: Week) -> Figured:
    return week.elo, week.elo_ci


def _gain(week: Week) -> Figured:
    return week.score_gain, week.score_gain_ci


def _helpful(week: Week) -> Figured:
    return (week.helpful.accuracy, week.helpful.ci) if week.helpful else (None, None)


def _harmless(week: Week) -> Figured:
    return (week.harmless.accuracy, week.harmless.ci) if week.harmless else (None, None)


def _all(week: Week) -> Figured:
    return (week.pm.accuracy, week.pm.ci) if week.pm else (None, None)
