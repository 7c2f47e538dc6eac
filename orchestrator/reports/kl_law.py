"""Rows of a report on score against the square root of the KL, and on best-of-n beside it."""

from __future__ import annotations

from collections.abc import Sequence

from models.policy.results import CurvePoint, Evaluation
from models.statistics.kl_law import Bend, Law, NotIdentifiable, forecast_kl
from orchestrator.judging.kl_law import has_watcher, law_of_curve, one_more
from orchestrator.reports.wording import with_interval

FORM = ".3g"


def law_rows(curve: Sequence[CurvePoint]) -> list[tuple[str, str]]:
    """What the report's table says about the law: slope, R², departure and a forecast; the watcher's slope beside."""
    if not curve:
        return []
    law = law_of_curve(curve)
    if isinstance(law, NotIdentifiable):
        return [("√KL law", f"not identifiable: {law.reason}")]
    rows = [
        (
            "√KL law",
            f"slope {with_interval(law.slope, law.slope_ci, FORM)} per √nat, R² {law.r_squared:.3f}, from KL "
            f"{law.from_kl_nats:.3g} to {law.to_kl_nats:.3g} nats ({law.num_points} of {len(curve)} points)",
        )
    ]
    if law.lag is not None:
        rows.append(("… begins late", _bend(law.lag)))
    rows.append(("… departure", _bend(law.departure) if law.departure else "none found"))
    if has_watcher(curve):
        seen = law_of_curve(curve, by_watcher=True)
        slope = (
            f"not identifiable: {seen.reason}"
            if isinstance(seen, NotIdentifiable)
            else f"slope {with_interval(seen.slope, seen.slope_ci, FORM)} per √nat, R² {seen.r_squared:.3f}, departure "
            + (_bend(seen.departure) if seen.departure else "none found")
        )
        rows.append(("… by the watcher", slope))
    rows.append(("… forecast", _forecast(law)))
    return rows


def best_of_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The report's rows for the best of k replies of the initial policy, where such points were asked for."""
    rows = []
    for point in evaluation.best_of_points or ():
        score = with_interval(point.pm_score, point.pm_score_ci, FORM)
        rows.append((f"… best of {point.k}", f"PM score {score} at KL {point.kl_nats:.3g} nats"))
    return rows


def _bend(bend: Bend) -> str:
    reached = f", after {bend.samples} samples" if bend.samples is not None else ""
    return (
        f"at KL {bend.kl_nats:.3g} nats{reached}: slope {bend.slope_before:.2g} before, {bend.slope_after:.2g} beyond "
        f"(t = {bend.t:.1f}, bound {bend.threshold:.1f})"
    )


def _forecast(law: Law) -> str:
    forecast = forecast_kl(law, one_more(law))
    if forecast is None:
        return "none: the score does not grow along the line"
    low, high = forecast.kl_ci
    above = "unknown" if high is None else f"{high:.3g}"
    return (
        f"one more PM unit at KL {forecast.kl_nats:.3g} nats [{low:.3g}, {above}]; a forecast: it takes the line to go "
        "on" + (", which the curve has left" if law.departure else "")
    )
