"""Score against the square root of the KL to the initial policy, for one run: the law, and what it foretells.

`models/statistics/kl_law.py` has the fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.statistics.kl_law import Law, NotIdentifiable, fit_law, forecast_kl


def law_of_curve(curve: Sequence[Mapping[str, Any]], score: str = "score") -> Law | NotIdentifiable:
    """The law of a run's curve, by the training PM's score or, with `score_watcher`, by the watcher's."""
    points = [point for point in curve if point.get(score) is not None and point.get("kl_nats") is not None]
    return fit_law(
        [point["kl_nats"] for point in points],
        [point[score] for point in points],
        [point["samples"] for point in points],
    )


def law_numbers(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The law as a report's JSON has it, with the forecast and the watcher's law; None without a curve."""
    if not curve:
        return None
    law = law_of_curve(curve)
    numbers = law.to_json()
    if isinstance(law, Law):
        forecast = forecast_kl(law, one_more(law))
        numbers["forecast"] = forecast.to_json() if forecast else None
    if has_watcher(curve):
        numbers["watcher"] = law_of_curve(curve, "score_watcher").to_json()
    return numbers


def has_watcher(curve: Sequence[Mapping[str, Any]]) -> bool:
    return any(point.get("score_watcher") is not None for point in curve)


def one_more(law: Law) -> float:
    """A PM unit above the line's end: there a reply wins against one of the end 73 % of the time, as the PM has it."""
    return law.at(law.to_kl_nats) + 1.0
