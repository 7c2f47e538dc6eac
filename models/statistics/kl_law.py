"""The square-root law: a policy's score grows by a·√KL while PPO moves it away from its start.

Pure functions of a run's curve, without torch: reports use them. Best-of-n, the yardstick on the same axes, is here
too; its KL is `best_of_n_kl` in models/policy/ppo.py. The picture is drawn in orchestrator/reports/pictures/kl_law.py.

Source: arXiv:2204.05862 §4.3 (the law, and its uses, which the authors call conjectural).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.statistics.intervals import student_quantile

Vector = NDArray[np.float64]

CONFIDENCE = 0.95
# A departure is a bend; on each side of it there must be enough points to see a line at all.
MIN_POINTS_PER_SIDE = 4
# Two parameters leave one degree of freedom at three points; below that there is no interval.
MIN_POINTS = 3
# Log-probs in fp32 are good to about 1e-4 a reply: a KL below that is rounding, and the policy has not moved.
MIN_KL_NATS = 1e-4
# Residuals this small against the scores' own spread are rounding, not a misfit.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Bend:
    """A place where the curve's slope changes, and on which side of the line it goes on."""

    kl_nats: float
    samples: int | None
    """Replies that PPO had learned from when KL first went beyond the bend; None where the curve doesn't say."""
    direction: str
    """`below`: beyond the bend the score grows more slowly (or falls); `above`: faster."""
    slope_before: float
    slope_after: float
    t: float
    """Change of slope in its standard errors, at the place where that is largest."""
    threshold: float
    """What |t| had to exceed: Student's quantile at 95 %, shared out among all places that were tried (Bonferroni)."""


@dataclass(frozen=True)
class Law:
    """score ≈ intercept + slope·√KL, by least squares over the stretch of the curve on which no bend is found.

    The slope's interval is Student's, 95 %, and takes the points' errors as independent and KL as exact; noise in KL
    flattens the slope. Where a bend was found on the same points the interval is somewhat too narrow.
    """

    intercept: float
    slope: float
    slope_ci: tuple[float, float]
    r_squared: float
    num_points: int
    """Points on which the line rests."""
    num_below_zero: int
    """Points of the whole curve whose estimated KL was below 0 by noise and was taken as 0."""
    from_kl_nats: float
    """Smallest and largest KL on which the line rests; a forecast beyond it extrapolates."""
    to_kl_nats: float
    lag: Bend | None
    """Where the line begins, if the curve first ran otherwise: PPO went away from its start before it gained by it."""
    departure: Bend | None
    """Where the curve leaves the line."""
    # What the forecast's interval needs: residual deviation, mean of √KL and its sum of squares about the mean.
    residual: float
    root_mean: float
    root_squares: float
    identifiable: Literal[True] = True

    def at(self, kl_nats: float) -> float:
        """The line's score at a KL, in nats per reply."""
        return self.intercept + self.slope * math.sqrt(max(0.0, kl_nats))


@dataclass(frozen=True)
class NotIdentifiable:
    """There is no line to be seen; `reason` says why, for people."""

    reason: str
    identifiable: Literal[False] = False


@dataclass(frozen=True)
class Forecast:
    """KL at which the line reaches a score. A forecast: it assumes that the line goes on, which nothing promises."""

    score: float
    kl_nats: float
    kl_ci: tuple[float, float | None]
    """95 % interval by Fieller's method; None as its end: the slope is not known well enough to say."""
    extrapolates: bool
    """Whether it lies beyond the curve on which the line rests."""
    kind: Literal["forecast"] = "forecast"


def fit_law(
    kl_nats: Sequence[float], scores: Sequence[float], samples: Sequence[int] | None = None
) -> Law | NotIdentifiable:
    """Fit the law to a run's curve and test where the curve departs from it.

    The test: at every point with at least four others on either side the line is given a bend, and the change of slope
    is divided by its standard error. There is a bend where the largest such |t| exceeds Student's two-sided quantile
    at 1 − 0.05 / (number of places tried). On a straight line with normal errors that happens in at most 5 % of the
    runs. The side of the bend that spans more of √KL is then tested again, until no bend is found; on what is left
    the line rests. With fewer than eleven points no bend is looked for.

    Args:
        kl_nats: (N,) estimated KL per reply to the initial policy, in any order; below 0 by noise counts as 0.
        scores: (N,) mean PM score at the same points.
        samples: (N,) replies learned from at each point, to say when a bend was reached.

    Points with a number that is not finite are left out.

    Raises:
        ValueError: the sequences have different lengths.
    """
    if len(kl_nats) != len(scores) or (samples is not None and len(samples) != len(scores)):
        raise ValueError(f"{len(kl_nats)} KLs, {len(scores)} scores: expected one of each per point")
    rows = [i for i in range(len(scores)) if math.isfinite(kl_nats[i]) and math.isfinite(scores[i])]
    if len(rows) < MIN_POINTS:
        return NotIdentifiable(f"{len(rows)} points on the curve; a line with an interval needs {MIN_POINTS}")
    kl = np.array([kl_nats[i] for i in rows])
    y = np.array([scores[i] for i in rows], dtype=np.float64)
    roots = np.sqrt(np.clip(kl, 0.0, None))
    if kl.max() < MIN_KL_NATS:
        return NotIdentifiable(f"KL never exceeds {MIN_KL_NATS:g} nats per reply: the policy has not moved")
    if np.ptp(roots) == 0.0:
        return NotIdentifiable("KL is the same at every point")
    if np.ptp(y) == 0.0:
        return NotIdentifiable("the score is the same at every point")
    order = np.argsort(roots, kind="stable")
    held_roots, held_y = roots[order], y[order]
    when = [(float(root), samples[row]) for row, root in zip(rows, roots, strict=True)] if samples else []
    lag = departure = None
    while (found := _bend(held_roots, held_y, when)) is not None:
        at, bend = found
        if at - held_roots[0] >= held_roots[-1] - at:
            departure, held = bend, held_roots <= at
        else:
            lag, held = bend, held_roots >= at
        held_roots, held_y = held_roots[held], held_y[held]
    return _line(held_roots, held_y, int((kl < 0).sum()), lag, departure)


def forecast_kl(law: Law, score: float) -> Forecast | None:
    """KL at which the law's line reaches a score; None where it never does: the slope is not above 0.

    A score that the line has at KL 0 already needs 0 nats.
    """
    if law.slope <= 0:
        return None
    root = max(0.0, (score - law.intercept) / law.slope)
    low, high = _fieller(law, score)
    kl = root**2
    return Forecast(
        score=score,
        kl_nats=kl,
        kl_ci=(max(0.0, low) ** 2, None if high is None else max(0.0, high) ** 2),
        extrapolates=kl > law.to_kl_nats,
    )


def expected_best_of(scores: Sequence[float], k: int) -> float:
    """Expected maximum of k scores drawn without repetition from these n, the unbiased estimate of best-of-k.

    Each k of the n are equally likely; the i-th smallest is their maximum in C(i − 1, k − 1) of C(n, k) cases. k = 1
    gives the mean, k = n the maximum. With n much larger than k the estimate has far less noise than one maximum of k.

    expected_best_of([1, 2, 4], 2) is 10/3: the pairs' maxima are 2, 4 and 4.

    Raises:
        ValueError: k is below 1 or above n.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"best of {k} from {n} scores: expected a k from 1 to {n}")
    total = math.comb(n, k)
    return math.fsum(
        score * (math.comb(rank, k - 1) / total) for rank, score in enumerate(sorted(scores)) if rank >= k - 1
    )


def _line(roots: Vector, y: Vector, below_zero: int, lag: Bend | None, departure: Bend | None) -> Law:
    n = len(roots)
    mean = float(roots.mean())
    centred = roots - mean
    squares = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / squares
    intercept = float(y.mean()) - slope * mean
    errors = y - intercept - slope * roots
    total = float(((y - y.mean()) ** 2).sum())
    unexplained = float(errors @ errors)
    deviation = math.sqrt(unexplained / (n - 2))
    half = student_quantile(CONFIDENCE, n - 2) * deviation / math.sqrt(squares)
    return Law(
        intercept=intercept,
        slope=slope,
        slope_ci=(slope - half, slope + half),
        r_squared=1.0 - unexplained / total if total > 0 else 0.0,
        num_points=n,
        num_below_zero=below_zero,
        from_kl_nats=float(roots[0]) ** 2,
        to_kl_nats=float(roots[-1]) ** 2,
        lag=lag,
        departure=departure,
        residual=deviation,
        root_mean=mean,
        root_squares=squares,
    )


def _bend(roots: Vector, y: Vector, when: Sequence[tuple[float, int]]) -> tuple[float, Bend] | None:
    """The clearest bend of a curve and its √KL, where it passes its test; `roots` ascending, `when` (√KL, samples).

    By Frisch and Waugh the change of slope b at a bend c is the regression of the line's residuals e on the part u of
    max(0, √KL − c) that 1 and √KL do not explain: b = u·e / u·u, and it takes b²·u·u from the residuals' squares.
    """
    n = len(roots)
    ones = roots - roots.mean()
    scale = float(ones @ ones)

    def residual_of(values: Vector) -> Vector:
        centred = values - values.mean()
        return centred - ones * (float(ones @ centred) / scale)

    errors = residual_of(y)
    unexplained = float(errors @ errors)
    if unexplained <= ROUNDING * float(((y - y.mean()) ** 2).sum()):
        return None
    places = [
        i
        for i in range(MIN_POINTS_PER_SIDE, n - MIN_POINTS_PER_SIDE)
        if roots[i] > roots[MIN_POINTS_PER_SIDE - 1] and roots[i] < roots[n - MIN_POINTS_PER_SIDE]
    ]
    # A bend is one more parameter, and needs places to be tried at; several points may share a √KL.
    candidates = sorted({float(roots[i]) for i in places})
    if len(candidates) < 3:
        return None
    best: tuple[float, float, float] | None = None
    for at in candidates:
        hinge = residual_of(np.maximum(0.0, roots - at))
        hinge_squares = float(hinge @ hinge)
        if hinge_squares <= ROUNDING * scale:
            continue
        change = float(hinge @ errors) / hinge_squares
        # Never nothing: a curve that is bent exactly has a t that is large, not infinite, which JSON can't hold.
        left = max(unexplained - change**2 * hinge_squares, ROUNDING * unexplained)
        t = change / math.sqrt(left / (n - 3) / hinge_squares)
        if best is None or abs(t) > abs(best[1]):
            best = (at, t, change)
    if best is None:
        return None
    at, t, change = best
    threshold = student_quantile(1 - (1 - CONFIDENCE) / len(candidates), n - 3)
    if abs(t) <= threshold:
        return None
    hinge = np.maximum(0.0, roots - at)
    before = float(ones @ (y - change * hinge)) / scale
    return at, Bend(
        kl_nats=at**2,
        samples=min((samples for root, samples in when if root > at), default=None),
        direction="below" if change < 0 else "above",
        slope_before=before,
        slope_after=before + change,
        t=t,
        threshold=threshold,
    )


def _fieller(law: Law, score: float) -> tuple[float, float | None]:
    """Interval of √KL: all x at which the line's own 95 % interval holds the score.

    (intercept + slope·x − score)² ≤ q²·s²·(1/n + (x − mean)²/squares), a quadratic inequality in x.
    """
    q = student_quantile(CONFIDENCE, law.num_points - 2) * law.residual
    rise = score - (law.intercept + law.slope * law.root_mean)
    # In z = x − mean: (slope·z − rise)² ≤ q²/n + z²·q²/squares.
    a = law.slope**2 - q**2 / law.root_squares
    b = -2.0 * law.slope * rise
    c = rise**2 - q**2 / law.num_points
    if a <= 0:
        # The slope's interval holds 0: no x is large enough to be excluded.
        return 0.0, None
    root = math.sqrt(max(b**2 - 4 * a * c, 0.0))
    return law.root_mean + (-b - root) / (2 * a), law.root_mean + (-b + root) / (2 * a)
