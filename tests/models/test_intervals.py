"""Intervals against published tables and hand-worked numbers."""

import math

import pytest

from models.intervals import mean_interval, mean_interval_json, student_quantile, wilson

TABLE = 5e-4  # printed tables have three decimals


def test_wilson_interval_of_a_small_share():
    # 8 of 10, z = 1.95996: centre (0.8 + 0.19207) / 1.38415 = 0.71674,
    # half = 1.95996 / 1.38415 * sqrt(0.016 + 0.0096036) = 0.22658.
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=TABLE)
    assert high == pytest.approx(0.9433, abs=TABLE)


def test_wilson_interval_ends_exactly_at_zero_and_one():
    # z^2 / (n + z^2) = 3.84146 / 13.84146
    assert wilson(0, 10) == (0.0, pytest.approx(0.27753, abs=TABLE))
    assert wilson(10, 10) == (pytest.approx(0.72247, abs=TABLE), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_interval_is_symmetric_under_swapping_success_and_failure():
    low, high = wilson(37, 120)
    assert wilson(83, 120) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_wilson_refuses_more_successes_than_observations():
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson(11, 10)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_student_quantiles_match_the_table(degrees, quantile):
    assert student_quantile(0.95, degrees) == pytest.approx(quantile, abs=TABLE)


def test_mean_interval_of_three_values():
    # mean 2, sample variance 1, standard error 1/sqrt(3) = 0.57735, times 4.3027
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert (low, high) == (pytest.approx(-0.4841, abs=TABLE), pytest.approx(4.4841, abs=TABLE))


def test_one_value_has_an_interval_without_bounds():
    assert mean_interval([4.0]) == (4.0, -math.inf, math.inf)
    assert mean_interval_json([4.0]) == (4.0, [None, None])


def test_no_values_have_no_mean():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
