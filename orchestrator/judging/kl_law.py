"""Score against the square root of the KL to the initial policy, for one run: the law, and what it foretells.

`models/statistics/kl_law.py` has the fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.policy.results import CurvePoint
from models.statistics.kl_law import Law, NotIdentifiable, fit_law, forecast_kl


def law_of_curve(curve: Sequence[CurvePoint], *, by_watcher: bool = False) -> Law | NotIdentifiable:
    """The law of a run's curve, by the training PM's score or by the watcher's."""
    scored = [(point, point.score_watcher if by_watcher else point.score) for point in curve]
    seen = [(point, score) for point, score in scored if score is not None]
    return fit_law(
        [point.kl_nats for point, _ in seen], [score for _, score in seen], [point.samples for point, _ in seen]
    )


def law_numbers(curve: Sequence[CurvePoint]) -> dict[str, Any] | None:
    """The law as a report's JSON has it, with the forecast and the watcher's law; None without a curve."""
    if not curve:
        return None
    law = law_of_curve(curve)
    numbers = law.to_json()
    if isinstance(law, Law):
        forecast = forecast_kl(law, one_more(law))
        numbers["forecast"] = forecast.to_json() if forecast else None
    if has_watcher(curve):
        numbers["watcher"] = law_of_curve(curve, by_watcher=True).to_json()
    return numbers


def has_watcher(curve: Sequence[CurvePoint]) -> bool:
    return any(point.score_watcher is not None for point in curve)


def one_more(law: Law) -> float:
    """A PM unit above the line's end: there a reply wins against one of the end 73 % of the time, as the PM has it."""
    return law.at(law.to_kl_nats) + 1.0
