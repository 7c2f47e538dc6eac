"""Confidence intervals for shares and means, as pure functions of numbers.

Used by every job that reports a figure with its interval; Elo intervals, which
resample dialogues, live with the Elo fit.
"""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

Clusters = Sequence[Hashable | None]
"""For each observation a name of what it shares with others (a dialogue), or None where it shares nothing known."""


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share of independent observations: (low, high), each within [0, 1].

    With no observation nothing is known: (0, 1). Half successes (ties) are allowed.

    Raises:
        ValueError: successes lie outside [0, n].

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected a number from 0 to {n}")
    return share_interval(successes / n if n else 0.0, n, confidence=confidence)


def share_interval(
    share: float, n: int, *, design_effect: float = 1.0, num_clusters: int | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Score interval of a share of `n` observations that count as n / design_effect independent ones: (low, high).

    With fewer clusters than observations the quantile is Student's with one degree less than there are clusters: that
    few say how much the others may differ. One cluster alone says nothing of others: (0, 1). `clustered` gives the
    design effect; `benchmarks/accuracy_intervals.py` measures how often such an interval holds the true share.
    """
    if n == 0 or num_clusters == 1 < n:
        return 0.0, 1.0
    known = num_clusters is not None and num_clusters < n
    z = student_quantile(confidence, num_clusters - 1) if known and num_clusters else normal_quantile(confidence)
    independent = n / design_effect
    scale = 1 + z * z / independent
    centre = (share + z * z / (2 * independent)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / independent + z * z / (4 * independent * independent))
    # At the ends the exact bound is 0 or 1; rounding must not leave 1 - 1e-17.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def clustered(outcomes: Sequence[float], clusters: Clusters | None) -> tuple[float, int | None]:
    """(design effect, number of clusters) of outcomes of any unit; (1, None) where no cluster is known.

    The design effect is by how much the variance of the mean exceeds that of as many independent outcomes. It is the
    larger of two estimates, and at least 1: that of the ratio estimator, G/(G−1)·Σ_c e_c² over n/(n−1)·Σ e_i² with e an
    outcome less the mean and e_c its sum over a cluster, and 1 + (m − 1)·ICC with m = Σ n_c²/n and the intra-cluster
    correlation by analysis of variance. The first is exact for any dependence but sees too little where a few large
    clusters hold most of it; the second pools all clusters. Outcomes that are all alike tell nothing of dependence, and
    are taken as wholly dependent: m. Clusters of one outcome each give exactly 1.

    Worked example: outcomes 1, 1, 0, 0 in two clusters of two. Mean 1/2, e_c = ±1, so 2/1·2 over 4/3·1 = 3; ICC 1 gives
    1 + (2 − 1)·1 = 2; the larger is 3.

    Source: Cochran 1977, Sampling Techniques, 3rd ed., 9A; Kish 1965, Survey Sampling, 5.4.
    """
    groups = grouped_values(outcomes, clusters)
    if groups is None:
        return 1.0, None
    n, num_clusters = len(outcomes), len(groups)
    if num_clusters == n:
        return 1.0, num_clusters
    mean = math.fsum(outcomes) / n
    weighted_size = sum(len(group) ** 2 for group in groups) / n
    squares = math.fsum((outcome - mean) ** 2 for outcome in outcomes)
    if squares == 0 or num_clusters == 1:
        return weighted_size, num_clusters
    sums = [math.fsum(value - mean for value in group) for group in groups]
    ratio = num_clusters / (num_clusters - 1) * math.fsum(e * e for e in sums) / (n / (n - 1) * squares)
    # Analysis of variance: mean squares between and within clusters, and the clusters' typical size.
    between_squares = math.fsum(e * e / len(group) for e, group in zip(sums, groups, strict=True))
    between = between_squares / (num_clusters - 1)
    within = (squares - between_squares) / (n - num_clusters)
    size = (n - weighted_size) / (num_clusters - 1)
    correlation = (between - within) / (between + (size - 1) * within)
    return min(float(n), max(1.0, ratio, 1 + (weighted_size - 1) * correlation)), num_clusters


def grouped_values(values: Sequence[float], clusters: Clusters | None) -> list[list[float]] | None:
    """The values by cluster, in the order of first appearance, then those of no known cluster, each alone.

    None where no cluster is known.
    """
    if clusters is None or all(cluster is None for cluster in clusters):
        return None
    groups: dict[Hashable, list[float]] = {}
    alone: list[list[float]] = []
    for value, cluster in zip(values, clusters, strict=True):
        if cluster is None:
            alone.append([value])
        else:
            groups.setdefault(cluster, []).append(value)
    return [*groups.values(), *alone]


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, clusters: Clusters | None = None
) -> tuple[float, float, float]:
    """Mean and Student-t interval of values, independent but within the clusters given: (mean, low, high).

    The variance of the mean is that of independent values times the design effect (`clustered`), and the quantile has
    one degree of freedom less than there are clusters; clusters of one value each give the interval of independent
    values, to the last bit. How often it lies above a true mean of 0 is in docs/log/preference-model.md, "Gates that
    heed dialogues". A single value, or a single cluster, has no measurable spread: its interval is (-inf, inf), which
    callers that write JSON must turn into null (see `mean_interval_json`).

    Worked example: 1, 2, 3, 4 in two clusters of two. Mean 2.5, variance 5/3, so 5/12 of the mean were they
    independent; design effect 2.4; the error is sqrt(5/12 · 2.4) = 1, the interval 2.5 ± 12.706.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values: a mean needs at least one")
    mean = math.fsum(values) / n
    effect, num_clusters = clustered(values, clusters)
    independent = n if num_clusters is None else num_clusters
    if independent == 1:
        return mean, -math.inf, math.inf
    squares = math.fsum((value - mean) ** 2 for value in values)
    error = math.sqrt(squares / (n - 1) / n) * math.sqrt(effect)
    half = student_quantile(confidence, independent - 1) * error
    return mean, mean - half, mean + half


def mean_interval_json(
    values: Sequence[float], confidence: float = 0.95, clusters: Clusters | None = None
) -> tuple[float, list[float | None]]:
    """`mean_interval` as (mean, [low, high]) for a JSON file, where an infinite bound is null."""
    mean, low, high = mean_interval(values, confidence, clusters)
    return mean, [bound if math.isfinite(bound) else None for bound in (low, high)]


def student_quantile(confidence: float, degrees: int) -> float:
    """Two-sided Student-t quantile: half-width of the interval in standard errors.

    Newton steps on the exact distribution function, from the normal quantile, which always lies
    below the answer; above 1,000 degrees the two differ by less than 0.2 % and the normal one is used.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom: expected at least 1")
    tail = 1 - confidence
    if degrees == 1:
        return 1 / math.tan(tail * math.pi / 2)
    if degrees == 2:
        return math.sqrt(2 / (tail * (2 - tail)) - 2)
    t = normal_quantile(confidence)
    if degrees > 1000:
        return t
    # From the left, where the distribution function is concave, Newton cannot overshoot.
    for _ in range(50):
        error = _student_two_sided(t, degrees) - confidence
        slope = 2 * _student_density(t, degrees)
        t -= error / slope
        if abs(error) < 1e-12:
            break
    return t


def normal_quantile(confidence: float) -> float:
    """Two-sided normal quantile: half-width of the interval in standard errors, 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected a share between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _student_density(t: float, degrees: int) -> float:
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    return math.exp(log_scale - (degrees + 1) / 2 * math.log1p(t * t / degrees))


def _student_two_sided(t: float, degrees: int) -> float:
    """Probability mass of Student's t within [-t, t]; finite series in the angle atan(t / sqrt(degrees)).

    Source: Abramowitz & Stegun 26.7.3 (odd degrees) and 26.7.4 (even degrees).
    """
    angle = math.atan(t / math.sqrt(degrees))
    cos_squared = math.cos(angle) ** 2
    if degrees % 2 == 0:
        term, total = 1.0, 1.0
        for k in range(1, degrees // 2):
            term *= (2 * k - 1) / (2 * k) * cos_squared
            total += term
        return math.sin(angle) * total
    term = total = math.cos(angle)
    for k in range(1, (degrees - 1) // 2):
        term *= 2 * k / (2 * k + 1) * cos_squared
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total)
