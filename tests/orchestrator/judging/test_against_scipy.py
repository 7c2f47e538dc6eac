"""The numbers that we compute by hand against scipy's.

By hand since jobs and reports share them, and a job needs torch and transformers alone; held here to a library that
many have checked.
"""

import numpy as np
import pytest
from scipy import optimize, special, stats

from models.statistics.intervals import normal_quantile, student_quantile, wilson
from models.statistics.logistic import logistic_slope
from orchestrator.judging.elo import ELO_PER_NAT, fit_elo

DIGITS = 1e-9  # relative, of quantiles and intervals
FITTED = 1e-5  # relative, of what scipy's own search ends at


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantiles(confidence: float) -> None:
    upper = 1 - (1 - confidence) / 2
    assert normal_quantile(confidence) == pytest.approx(stats.norm.ppf(upper), rel=DIGITS)
    for degrees in (1, 2, 3, 7, 30, 1000):
        assert student_quantile(confidence, degrees) == pytest.approx(stats.t.ppf(upper, degrees), rel=1e-7), degrees


@pytest.mark.parametrize(("successes", "trials"), [(1, 7), (5, 10), (37, 120), (999, 1000)])
def test_the_interval_of_a_share(successes: int, trials: int) -> None:
    theirs = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((theirs.low, theirs.high), rel=1e-7)


def test_the_slope_of_a_logistic_fit_and_its_error() -> None:
    differences = np.random.default_rng(0).normal(0.5, 2.0, 300)
    found = logistic_slope(differences.tolist())
    assert found is not None

    def loss(slope: float) -> float:
        return float(np.logaddexp(0, -slope * differences).sum())

    theirs = optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10}).x
    won = special.expit(theirs * differences)
    assert found == pytest.approx((theirs, (differences**2 * won * (1 - won)).sum() ** -0.5), rel=FITTED)


def test_elo_is_the_maximum_of_the_likelihood() -> None:
    wins = np.random.default_rng(1).integers(1, 30, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)

    def loss(others: np.ndarray) -> float:
        strength = np.concatenate([[0.0], others])
        return float((wins * np.logaddexp(0, strength[None, :] - strength[:, None])).sum())

    theirs = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x * ELO_PER_NAT
    assert fit_elo(wins, prior_games=0) == pytest.approx(np.concatenate([[0.0], theirs]), rel=FITTED, abs=1e-3)
