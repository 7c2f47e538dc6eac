"""Score against the square root of the KL to the initial policy, for one run: the law, and what it foretells.

`models/statistics/kl_law.py` has the fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from models.policy.results import CurvePoint
from models.runtime.results import IF_MEASURED
from models.statistics.kl_law import Forecast, Law, NotIdentifiable, fit_law, forecast_kl


@dataclass(frozen=True, kw_only=True)
class CurveLaw(Law):
    """The law of a run, with the forecast and, where a watcher looked on, the law by its scores."""

    forecast: Forecast | None = None
    watcher: Law | NotIdentifiable | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True, kw_only=True)
class NoCurveLaw(NotIdentifiable):
    """The same of a run that shows no line by the training PM's scores."""

    watcher: Law | NotIdentifiable | None = field(default=None, metadata=IF_MEASURED)


def law_of_curve(curve: Sequence[CurvePoint], *, by_watcher: bool = False) -> Law | NotIdentifiable:
    """The law of a run's curve, by the training PM's score or by the watcher's."""
    scored = [(point, point.score_watcher if by_watcher else point.score) for point in curve]
    seen = [(point, score) for point, score in scored if score is not None]
    return fit_law(
        [point.kl_nats for point, _ in seen], [score for _, score in seen], [point.samples for point, _ in seen]
    )


def curve_law(curve: Sequence[CurvePoint]) -> CurveLaw | NoCurveLaw | None:
    """The law as a report's JSON has it; None without a curve."""
    if not curve:
        return None
    law = law_of_curve(curve)
    watcher = law_of_curve(curve, by_watcher=True) if has_watcher(curve) else None
    if isinstance(law, NotIdentifiable):
        return NoCurveLaw(**vars(law), watcher=watcher)
    return CurveLaw(**vars(law), forecast=forecast_kl(law, one_more(law)), watcher=watcher)


def has_watcher(curve: Sequence[CurvePoint]) -> bool:
    return any(point.score_watcher is not None for point in curve)


def one_more(law: Law) -> float:
    """A PM unit above the line's end: there a reply wins against one of the end 73 % of the time, as the PM has it."""
    return law.at(law.to_kl_nats) + 1.0
