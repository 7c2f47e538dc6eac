"""How much of a preference model's accuracy is more than a liking for long (or short) replies.

Beside the rule "the longer reply wins": the rater's own taste for length, and what is left of the preference model's
score gaps with length regressed out. Length differences are tokens(better) − tokens(worse) everywhere in this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.statistics.logistic import logistic_slope

# A residual this small beside its gap is rounding, that is a tie: without this a model that only measures
# length would be judged by the sign of its last bit.
RESIDUAL_ROUNDING = 1e-9


@dataclass(frozen=True)
class LengthRegression:
    """A preference model's score gaps split into the part that follows length and the rest."""

    score_per_token: float  # nats of score gap per token of length difference
    residual_gaps: list[float]  # gap − score_per_token · length difference, one per pair; right where positive


def length_log_odds(length_differences: Sequence[float]) -> float | None:
    """Logistic regression of the outcome on the length difference: log-odds of winning per extra token.

    Maximum likelihood of P(better wins) = sigmoid(a·d) without intercept, since
    exchanging the two sides negates d and the outcome alike. None where no finite
    maximum exists: every pair goes the same way, or all lengths are equal.

    Worked example: d = 1, 1, 1, −1 gives sigmoid(a) = 3/4, so a = log 3 = 1.0986.
    """
    found = logistic_slope(length_differences)
    return None if found is None else found[0]


def regress_out_length(gaps: Sequence[float], length_differences: Sequence[float]) -> LengthRegression:
    """Least squares of the score gap on the length difference, and the accuracy of what is left over.

    With g = score(better) − score(worse) and d = tokens(better) − tokens(worse)
    the slope is b = Σ g·d / Σ d² and a pair counts as right when g − b·d > 0.
    There is no intercept: exchanging the sides of a pair negates both g and d, so
    on pairs counted in both orders the fitted intercept is 0. For the same reason
    b does not depend on which side the raters preferred, so that fitting it on the
    very pairs it is applied to leaks no label. A preference model that only
    measures length keeps nothing but ties and noise, and falls to 50 %.

    Worked example: g = 2, 1, −1 and d = 2, −1, −2 give Σgd = 5, Σd² = 9, b = 5/9,
    residuals 8/9, 14/9, 1/9: all three right, although the third was wrong before.

    Raises:
        ValueError: no pairs, or not one length difference per gap.
    """
    if len(gaps) != len(length_differences):
        raise ValueError(f"{len(gaps)} score gaps but {len(length_differences)} length differences.")
    if not gaps:
        raise ValueError("Regression over 0 pairs; it needs at least one.")
    squares = sum(d * d for d in length_differences)
    products = sum(g * d for g, d in zip(gaps, length_differences, strict=True))
    slope = products / squares if squares > 0 else 0.0
    residuals = []
    for gap, difference in zip(gaps, length_differences, strict=True):
        residual = gap - slope * difference
        residuals.append(0.0 if abs(residual) <= RESIDUAL_ROUNDING * abs(gap) else residual)
    return LengthRegression(slope, residuals)
