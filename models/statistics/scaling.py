"""What more labels or a bigger preference model would bring: accuracy against ln(parameters) and ln(comparisons).

Pure functions; `orchestrator/judging/forecasts.py` gathers the points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.statistics.intervals import normal_quantile, student_quantile, wilson

# With two sizes any accuracies lie on a line; only a third can contradict it.
MIN_DISTINCT = 3
# Directions of the design that carry less than this share of the largest are no information but rounding.
RANK_TOLERANCE = 1e-6
CURVE_BLOCKS = 6
MIN_BLOCK_PAIRS = 32


@dataclass(frozen=True, slots=True)
class ScalingPoint:
    """Accuracy of a preference model of this size trained on so many comparisons, measured on `n` pairs.

    Pairs that depend on each other count as fewer: give n over their design effect.
    """

    parameters: int
    comparisons: float
    accuracy: float
    n: float


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    ci: tuple[float, float]


@dataclass(frozen=True)
class Forecast:
    """What one change would bring: the gain over the fit at the last point, and the accuracy there."""

    gain: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class Forecasts:
    """A forecast of each change that is asked about; None where the fit can't tell."""

    twice_the_comparisons: Forecast | None
    four_times_the_parameters: Forecast | None


@dataclass(frozen=True, kw_only=True)
class ScalingFit:
    """The fit accuracy = a + b·ln(parameters) + c·ln(comparisons); `fit_scaling` says how it is made."""

    comparisons: float
    """That the last point's model was trained on."""
    num_points: int
    num_sizes: int
    num_comparison_counts: int
    a: Estimate | None
    b: Estimate | None
    c: Estimate | None
    scatter: float | None
    r_squared: float | None
    forecast: Forecasts
    notes: Mapping[str, str] = field(default_factory=dict)
    """Why a coefficient can't be told, by its name."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A block of a learning curve: accuracy with its interval after so many comparisons, over `n` pairs."""

    comparisons: float
    accuracy: float
    ci: tuple[float, float]
    n: int


def fit_scaling(
    points: Sequence[ScalingPoint], *, comparisons: float | None = None, confidence: float = 0.95
) -> ScalingFit:
    """Fit accuracy = a + b·ln(parameters) + c·ln(comparisons), and say what follows for the last point.

    `comparisons` is what the last point's model was trained on in the end, where the point is not its end.

    Weighted least squares, each point with its binomial variance. b needs three
    different sizes and c three different numbers of comparisons; with fewer sizes only the points
    of the last one's size are used. What can't be told is None, with the reason in `notes`. An interval is the
    wider of the one from the binomial variances and the one from the points' scatter about the fit (Student t), so a
    poor fit has wide intervals; `scatter` is that scatter, 1 where the pairs' noise explains all of it.

    `forecast` gives, for twice the comparisons and for four times the parameters, the gain over the fit at the last
    point and the accuracy there, each with its interval.

    Raises:
        ValueError: no points.

    Source: arXiv:2204.05862, appendix A.3; the logarithm is taken as natural.
    """
    if not points:
        raise ValueError("A scaling fit of 0 points; it needs at least one.")
    last = points[-1]
    notes: dict[str, str] = {}
    sizes = {point.parameters for point in points}
    with_b = len(sizes) >= MIN_DISTINCT
    if not with_b:
        notes["b"] = _too_few(len(sizes), "size")
        points = [point for point in points if point.parameters == last.parameters]
    counts = {point.comparisons for point in points}
    with_c = len(counts) >= MIN_DISTINCT
    if not with_c:
        notes["c"] = _too_few(len(counts), "number of comparisons", "numbers of comparisons")
    columns = ["a", *(["b"] if with_b else []), *(["c"] if with_c else [])]
    design = np.array([_row(point, columns) for point in points])
    if np.linalg.matrix_rank(design - design.mean(axis=0), tol=RANK_TOLERANCE) < len(columns) - 1:
        notes |= dict.fromkeys(("b", "c"), "not identifiable: size and comparisons rise together")
        columns, design = ["a"], design[:, :1]
    fit = _Fit(design, points, confidence)
    coefficients = {name: fit.linear(np.eye(len(columns))[place]) for place, name in enumerate(columns)}
    now = last.comparisons if comparisons is None else comparisons
    here = np.array(_row(ScalingPoint(last.parameters, now, 0.5, 1), columns))

    def forecast(needed: str, parameters: int, comparisons: float) -> Forecast | None:
        if needed not in columns:
            return None
        there = np.array(_row(ScalingPoint(parameters, comparisons, 0.5, 1), columns))
        return Forecast(fit.linear(there - here), fit.linear(there))

    return ScalingFit(
        comparisons=now,
        num_points=len(points),
        num_sizes=len(sizes),
        num_comparison_counts=len(counts),
        a=coefficients.get("a"),
        b=coefficients.get("b"),
        c=coefficients.get("c"),
        scatter=fit.scatter,
        r_squared=fit.r_squared,
        forecast=Forecasts(forecast("c", last.parameters, 2 * now), forecast("b", 4 * last.parameters, now)),
        notes=notes,
    )


class _Fit:
    """A weighted least-squares fit that can tell any linear combination of its coefficients with an interval."""

    def __init__(self, design: Any, points: Sequence[ScalingPoint], confidence: float) -> None:
        values = np.array([point.accuracy for point in points])
        # One right and one wrong pair more, so that an accuracy of 1 has no infinite weight.
        shares = np.array([(point.accuracy * point.n + 1) / (point.n + 2) for point in points])
        weights = np.array([point.n for point in points]) / (shares * (1 - shares))
        self.covariance = np.linalg.inv(design.T @ (weights[:, None] * design))
        self.coefficients = self.covariance @ (design.T @ (weights * values))
        degrees = len(points) - design.shape[1]
        squares = float((weights * (values - design @ self.coefficients) ** 2).sum())
        mean = float((weights * values).sum() / weights.sum())
        total = float((weights * (values - mean) ** 2).sum())
        self.scatter = squares / degrees if degrees else None
        self.r_squared = 1 - squares / total if total > 0 and degrees else None
        self._half = normal_quantile(confidence)
        if degrees:
            self._half = max(self._half, student_quantile(confidence, degrees) * math.sqrt(squares / degrees))

    def linear(self, row: Any) -> Estimate:
        """row · coefficients with its interval."""
        value = float(row @ self.coefficients)
        half = self._half * math.sqrt(max(0.0, float(row @ self.covariance @ row)))
        return Estimate(value, (value - half, value + half))


def _row(point: ScalingPoint, columns: Sequence[str]) -> list[float]:
    terms = {"a": 1.0, "b": math.log(point.parameters), "c": math.log(point.comparisons)}
    return [terms[name] for name in columns]


def _too_few(found: int, one: str, many: str | None = None) -> str:
    return f"not identifiable: {found} {one if found == 1 else many or one + 's'}, {MIN_DISTINCT} are needed"


def learning_curve(steps: Iterable[tuple[int, float]], num_pairs: int, batch_pairs: int) -> tuple[CurvePoint, ...]:
    """Accuracy against comparisons learned from, out of the steps of the first epoch.

    `steps` are (step from 1, share of the batch ordered rightly before the step learned from it): in one epoch every
    pair is judged by a model that has not seen it. Steps are taken together in blocks that each double the number of
    comparisons, the newest block first made; `comparisons` is the geometric mean over a block, because accuracy goes
    with the logarithm. The beginning, below the last block, is left out: there the learning rate still warms up.

    The interval takes the pairs of a block as independent.

    Source: arXiv:2204.05862, appendix A.2 (one epoch doubles as the curve of dataset size).
    """
    epoch = [(step, accuracy) for step, accuracy in steps if (step - 1) * batch_pairs < num_pairs]
    blocks: list[CurvePoint] = []
    high = num_pairs
    while len(blocks) < CURVE_BLOCKS and high // 2 >= max(batch_pairs, MIN_BLOCK_PAIRS):
        low = high // 2
        members = [(step, accuracy) for step, accuracy in epoch if low <= (step - 1) * batch_pairs < high]
        high = low
        if not members:
            continue
        pairs = [min(batch_pairs, num_pairs - (step - 1) * batch_pairs) for step, _ in members]
        right = sum(round(accuracy * count) for (_, accuracy), count in zip(members, pairs, strict=True))
        logs = [count * math.log((step - 1) * batch_pairs) for (step, _), count in zip(members, pairs, strict=True)]
        n = sum(pairs)
        blocks.append(
            CurvePoint(comparisons=math.exp(math.fsum(logs) / n), accuracy=right / n, ci=wilson(right, n), n=n)
        )
    return tuple(blocks[::-1])
