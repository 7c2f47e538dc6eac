"""Logistic regression with one slope and no intercept, which is what a comparison of two sides allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from models.statistics.intervals import Clusters, grouped_values

# Newton's method on a concave function of one variable; it converges in fewer than ten steps or diverges.
NEWTON_STEPS = 50
NEWTON_TOLERANCE = 1e-10


def logistic_slope(differences: Sequence[float], clusters: Clusters | None = None) -> tuple[float, float] | None:
    """Slope a of P(better wins) = sigmoid(a·d), by maximum likelihood, with its standard error.

    `differences` are value(better) − value(worse). There is no intercept: exchanging
    the two sides negates d and the outcome alike. The standard error is that of the
    observed information, 1 / sqrt(Σ d²·p·(1 − p)). With `clusters` (dialogues) it is larger by
    sqrt(V_c / V) where that is above 1: V_c = G/(G − 1)·Σ_c (Σ d·(1 − p))² sums the pairs'
    gradients over each cluster first, V = n/(n − 1)·Σ (d·(1 − p))² does not. None where no finite
    maximum exists: every pair goes the same way, or all values are equal.

    Worked example: d = 1, 1, 1, −1 gives sigmoid(a) = 3/4, so a = log 3 = 1.0986, and
    the information 4 · 3/16 = 3/4, so the standard error is 1.1547.
    """
    nonzero = [d for d in differences if d != 0]
    if not any(d > 0 for d in nonzero) or not any(d < 0 for d in nonzero):
        return None
    # In units of the root mean square difference, so that the first Newton step is of a sensible size.
    scale = math.sqrt(sum(d * d for d in nonzero) / len(nonzero))
    scaled = [d / scale for d in nonzero]
    slope = 0.0
    for _ in range(NEWTON_STEPS):
        wins = [sigmoid(slope * d) for d in scaled]
        gradient = sum(d * (1.0 - p) for d, p in zip(scaled, wins, strict=True))
        curvature = sum(d * d * p * (1.0 - p) for d, p in zip(scaled, wins, strict=True))
        if curvature == 0.0:
            break
        # A step is at most 1: far from the maximum the curvature is nearly 0 and a full step overshoots.
        step = max(-1.0, min(1.0, gradient / curvature))
        slope += step
        if abs(step) < NEWTON_TOLERANCE:
            break
    information = sum(d * d * p * (1.0 - p) for d, p in ((d, sigmoid(slope * d)) for d in scaled))
    error = 1.0 / (math.sqrt(information) * scale)
    if clusters is not None:
        named = [cluster for d, cluster in zip(differences, clusters, strict=True) if d != 0]
        error *= math.sqrt(_inflation([d * (1.0 - sigmoid(slope * d)) for d in scaled], named))
    return slope / scale, error


def _inflation(gradients: Sequence[float], clusters: Clusters) -> float:
    """By how much the variance of the sum of gradients exceeds that of independent ones; at least 1."""
    groups = grouped_values(gradients, clusters)
    n = len(gradients)
    if groups is None or len(groups) in (1, n):
        return 1.0
    over = len(groups) / (len(groups) - 1) * math.fsum(math.fsum(group) ** 2 for group in groups)
    return max(1.0, over / (n / (n - 1) * math.fsum(g * g for g in gradients)))


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x), without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
