"""Confidence intervals for shares and means, as pure functions of numbers.

Used by every job that reports a figure with its interval; Elo intervals, which
resample dialogues, live with the Elo fit.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share: (low, high), each within [0, 1].

    With no observation nothing is known: (0, 1). Half successes (ties) are allowed.

    Raises:
        ValueError: successes lie outside [0, n].

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected a number from 0 to {n}")
    if n == 0:
        return 0.0, 1.0
    z = normal_quantile(confidence)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1; rounding must not leave 1 - 1e-17.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student-t interval of independent values: (mean, low, high).

    A single value has no measurable spread: its interval is (-inf, inf), which callers
    that write JSON must turn into null (see `mean_interval_json`).

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values: a mean needs at least one")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, -math.inf, math.inf
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = student_quantile(confidence, n - 1) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def mean_interval_json(values: Sequence[float], confidence: float = 0.95) -> tuple[float, list[float | None]]:
    """`mean_interval` as (mean, [low, high]) for a JSON file, where an infinite bound is null."""
    mean, low, high = mean_interval(values, confidence)
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
