"""The square-root law: the fit by hand, planted slopes and bends found, and best-of-n estimated from one sampling."""

import itertools
import json
import math

import numpy as np
import pytest

from models.runtime.results import part_to_json
from models.statistics.kl_law import Law, NotIdentifiable, expected_best_of, fit_law, forecast_kl

ROUNDING = 1e-9
# Worked out by hand to six digits.
BY_HAND = 1e-5


def law_of(kl_nats, scores, samples=None):
    law = fit_law(kl_nats, scores, samples)
    assert isinstance(law, Law), law
    return law


def curve(slope_before, slope_after, bend, *, noise, seed, points=40, reach=4.0):
    """Evenly spaced in √KL from 0 to `reach`: starts at 1, bent at √KL = `bend`."""
    roots = np.linspace(0.0, reach, points)
    scores = 1.0 + slope_before * np.minimum(roots, bend) + slope_after * np.maximum(0.0, roots - bend)
    scores += np.random.default_rng(seed).normal(0.0, noise, points)
    return (roots**2).tolist(), scores.tolist()


# Four points: √KL 0, 1, 2, 3, scores 1, 2, 4, 5. Means 1.5 and 3, squares about the mean 5 and 10, products 7.
FOUR = ([0.0, 1.0, 4.0, 9.0], [1.0, 2.0, 4.0, 5.0])


def test_the_fit_by_hand():
    law = law_of(*FOUR)
    assert law.slope == pytest.approx(1.4, abs=ROUNDING)  # 7 / 5
    assert law.intercept == pytest.approx(0.9, abs=ROUNDING)  # 3 - 1.4 * 1.5
    # Residuals 0.1, -0.3, 0.3, -0.1: their squares are 0.2 of 10, their variance 0.2 / 2.
    assert law.r_squared == pytest.approx(0.98, abs=ROUNDING)
    # Standard error √(0.1 / 5) = 0.141421, Student's quantile for two degrees 4.302653.
    assert law.slope_ci == pytest.approx((1.4 - 0.608487, 1.4 + 0.608487), abs=BY_HAND)
    assert (law.num_points, law.from_kl_nats, law.to_kl_nats) == (4, 0.0, 9.0)
    assert law.lag is None
    assert law.departure is None
    assert law.at(4.0) == pytest.approx(3.7, abs=ROUNDING)


def test_the_forecast_by_hand():
    # (6.5 - 0.9) / 1.4 = 4. Fieller with q²s² = 4.302653² * 0.1 = 1.851282, about the mean of √KL:
    # a = 1.96 - 1.851282 / 5 = 1.589744, b = -2 * 1.4 * 3.5 = -9.8, c = 12.25 - 1.851282 / 4 = 11.787179,
    # √(96.04 - 74.954) = 4.591949: z = 1.638004 and 4.526504, √KL = 3.138004 and 6.026504.
    forecast = forecast_kl(law_of(*FOUR), 6.5)
    assert forecast is not None
    assert forecast.kl_nats == pytest.approx(16.0, abs=ROUNDING)
    assert forecast.kl_ci == pytest.approx((3.138004**2, 6.026504**2), rel=1e-4)
    assert forecast.extrapolates
    assert part_to_json(forecast)["kind"] == "forecast"


def test_a_score_on_the_curve_is_no_extrapolation_and_one_below_it_needs_nothing():
    law = law_of([x * x for x in range(5)], [3.0 + 2.0 * x for x in range(5)])
    assert forecast_kl(law, 7.0).kl_nats == pytest.approx(4.0, abs=ROUNDING)
    assert not forecast_kl(law, 7.0).extrapolates
    assert forecast_kl(law, 2.0).kl_nats == 0.0


def test_a_slope_that_may_be_zero_gives_no_upper_bound_and_a_falling_line_no_forecast():
    uncertain = law_of([0.0, 1.0, 4.0], [1.0, 3.0, 2.0])  # slope 1/2, standard error 0.87
    assert uncertain.slope_ci[0] < 0 < uncertain.slope_ci[1]
    assert forecast_kl(uncertain, 5.0).kl_ci[1] is None
    assert forecast_kl(law_of([0.0, 1.0, 4.0], [3.0, 2.0, 1.0]), 5.0) is None


def test_a_planted_slope_lies_in_its_interval_nineteen_times_in_twenty():
    inside = [
        law.slope_ci[0] <= 2.0 <= law.slope_ci[1]
        for seed in range(400)
        if (law := law_of(*curve(2.0, 2.0, 4.0, noise=0.3, seed=seed))).departure is None and law.lag is None
    ]
    # Three standard errors of a share of 0.95 over 400 curves are 0.033.
    assert sum(inside) / len(inside) == pytest.approx(0.95, abs=0.033)


def test_a_straight_line_is_rarely_called_bent():
    alarms = sum(
        (law := law_of(*curve(2.0, 2.0, 4.0, noise=0.3, seed=1000 + seed))).departure is not None or law.lag is not None
        for seed in range(400)
    )
    assert alarms / 400 <= 0.05


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_departure_is_found_where_it_is(seed):
    kl, scores = curve(2.0, 0.0, 2.5, noise=0.15, seed=seed)
    law = law_of(kl, scores, samples=[64 * i for i in range(40)])
    assert law.lag is None
    assert law.departure is not None
    assert law.departure.direction == "below"
    assert math.sqrt(law.departure.kl_nats) == pytest.approx(2.5, abs=0.35)  # three points to either side
    assert law.departure.slope_after == pytest.approx(0.0, abs=0.3)
    assert abs(law.departure.t) > law.departure.threshold > 3
    assert law.slope_ci[0] < 2.0 < law.slope_ci[1]
    assert law.to_kl_nats == law.departure.kl_nats
    # The first point beyond the bend: points are 4 / 39 apart in √KL.
    place = sum(x <= law.departure.kl_nats for x in kl)
    assert law.departure.samples == 64 * place


def test_a_planted_lag_is_told_apart_from_a_departure():
    law = law_of(*curve(0.0, 2.0, 1.0, noise=0.1, seed=3))
    assert law.departure is None
    assert law.lag is not None
    assert law.lag.direction == "above"
    assert math.sqrt(law.from_kl_nats) == pytest.approx(1.0, abs=0.35)
    assert law.slope == pytest.approx(2.0, abs=0.15)


def test_a_lag_and_a_departure_leave_the_middle():
    roots = np.linspace(0.0, 6.0, 60)
    scores = np.interp(roots, [0, 1, 5, 6], [0, 0, 8, 8]) + np.random.default_rng(0).normal(0, 0.1, 60)
    law = law_of((roots**2).tolist(), scores.tolist())
    assert law.lag is not None
    assert law.departure is not None
    assert math.sqrt(law.from_kl_nats) == pytest.approx(1.0, abs=0.35)
    assert math.sqrt(law.to_kl_nats) == pytest.approx(5.0, abs=0.35)
    assert law.slope == pytest.approx(2.0, abs=0.1)


def test_order_and_units_of_the_points_say_nothing():
    kl, scores = curve(2.0, 0.5, 2.5, noise=0.1, seed=1)
    law = law_of(kl, scores)
    order = np.random.default_rng(0).permutation(len(kl))
    shuffled = law_of([kl[i] for i in order], [scores[i] for i in order])
    assert shuffled.slope == pytest.approx(law.slope, abs=ROUNDING)
    assert shuffled.departure.kl_nats == law.departure.kl_nats
    # Scores times -3: slope times -3, and the departure goes to the other side.
    negated = law_of(kl, [-3.0 * score for score in scores])
    assert negated.slope == pytest.approx(-3.0 * law.slope, abs=ROUNDING)
    assert negated.departure.direction == "above"
    # KL four times as large: √KL twice, the slope half.
    assert law_of([4.0 * x for x in kl], scores).slope == pytest.approx(law.slope / 2, abs=ROUNDING)


def test_an_exactly_bent_curve_is_json():
    law = law_of(*curve(2.0, 0.0, 20 * 4.0 / 39, noise=0.0, seed=0))
    assert law.departure is not None
    again = json.loads(json.dumps(part_to_json(law), allow_nan=False))
    assert again["slope"] == pytest.approx(2.0, abs=1e-6)
    assert again["identifiable"] is True


def test_kl_below_zero_by_noise_counts_as_zero():
    law = law_of([-0.02, 1.0, 4.0, 9.0], FOUR[1])
    assert law.num_below_zero == 1
    assert law.slope == pytest.approx(1.4, abs=ROUNDING)


@pytest.mark.parametrize(
    ("kl", "scores", "reason"),
    [
        ([], [], "0 points"),
        ([0.0, 1.0], [1.0, 2.0], "2 points"),
        ([0.0, 1.0, math.nan], [1.0, 2.0, 3.0], "2 points"),
        ([0.0, -1e-6, 1e-5, 0.0], [1.0, 1.1, 0.9, 1.2], "has not moved"),
        ([2.0, 2.0, 2.0], [1.0, 1.1, 0.9], "KL is the same"),
        ([0.0, 1.0, 4.0], [1.0, 1.0, 1.0], "score is the same"),
    ],
)
def test_what_shows_no_line_is_not_identifiable(kl, scores, reason):
    found = fit_law(kl, scores)
    assert isinstance(found, NotIdentifiable)
    assert reason in found.reason
    assert part_to_json(found) == {"identifiable": False, "reason": found.reason}


def test_a_short_curve_has_a_line_and_no_bend():
    kl, scores = curve(2.0, -2.0, 2.0, noise=0.0, seed=0, points=9)
    law = law_of(kl, scores)
    assert law.departure is None
    assert law.num_points == 9


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 KLs, 3 scores"):
        fit_law([0.0, 1.0], [1.0, 2.0, 3.0])


# Best of n


def test_best_of_k_by_hand():
    # Pairs of (1, 2, 4): maxima 2, 4, 4.
    assert expected_best_of([4.0, 1.0, 2.0], 2) == pytest.approx(10 / 3, abs=ROUNDING)
    assert expected_best_of([4.0, 1.0, 2.0], 1) == pytest.approx(7 / 3, abs=ROUNDING)
    assert expected_best_of([4.0, 1.0, 2.0], 3) == 4.0


@pytest.mark.parametrize("k", range(1, 8))
def test_best_of_k_is_the_mean_over_all_choices_ties_included(k):
    scores = [0.3, -1.0, 2.5, 2.5, 0.0, 7.0, -4.0]
    every = [max(choice) for choice in itertools.combinations(scores, k)]
    assert expected_best_of(scores, k) == pytest.approx(sum(every) / len(every), abs=ROUNDING)


def test_best_of_k_is_unbiased_for_the_maximum_of_k_fresh_draws():
    # Of k uniform numbers the largest is k / (k + 1) on average.
    draws = np.random.default_rng(0).uniform(size=(4000, 16))
    for k in (1, 4, 16):
        estimates = [expected_best_of(row.tolist(), k) for row in draws]
        error = float(np.std(estimates)) / math.sqrt(len(estimates))
        assert np.mean(estimates) == pytest.approx(k / (k + 1), abs=4 * error)


@pytest.mark.parametrize("k", [0, 4])
def test_more_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"best of {k} from 3 scores"):
        expected_best_of([1.0, 2.0, 3.0], k)
