"""The scaling fit: hand-worked lines, planted planes recovered, and what can't be told said so."""

from __future__ import annotations

import math
import random

import pytest

from models.statistics.scaling import Forecasts, ScalingPoint, fit_scaling, learning_curve

ROUNDING = 1e-9
# 95 % intervals of 200 planted fits hold the truth 190 times on average, with a standard deviation of 3.
LEAST_COVERED, NUM_FITS = 180, 200


def exact(parameters: int, comparisons: int, n: int = 1000) -> ScalingPoint:
    """A point on 0.2 + 0.02·ln P + 0.03·ln D."""
    return ScalingPoint(parameters, comparisons, 0.2 + 0.02 * math.log(parameters) + 0.03 * math.log(comparisons), n)


def test_a_plane_without_noise_is_recovered_and_forecast():
    points = [exact(p, d) for p in (10**4, 10**5, 10**6) for d in (1000, 4000, 9000)]
    found = fit_scaling(points)
    assert [found.a.value, found.b.value, found.c.value] == pytest.approx([0.2, 0.02, 0.03], abs=ROUNDING)
    assert found.notes == {}
    assert found.r_squared == pytest.approx(1.0)
    assert found.scatter == pytest.approx(0.0, abs=ROUNDING)
    labels, size = found.forecast.twice_the_comparisons, found.forecast.four_times_the_parameters
    assert labels.gain.value == pytest.approx(0.03 * math.log(2), abs=ROUNDING)
    assert size.gain.value == pytest.approx(0.02 * math.log(4), abs=ROUNDING)
    assert labels.accuracy.value == pytest.approx(exact(10**6, 18000).accuracy, abs=ROUNDING)
    # Without scatter the interval is that of the pairs' binomial noise, and never a point.
    assert labels.gain.ci[0] < labels.gain.value < labels.gain.ci[1]


def test_interval_of_two_unknowns_and_equal_weights_by_hand():
    # ln D = 0, 1, 2 and accuracy 1/2 ± 0: three equal weights w = n / (1/4) = 400, Σ(x − 1)² = 2.
    points = [ScalingPoint(100, math.exp(x), 0.5, 100) for x in range(3)]
    found = fit_scaling(points)
    half = 1.959964 / math.sqrt(400 * 2)
    assert found.c.value == pytest.approx(0.0, abs=ROUNDING)
    assert found.c.ci == pytest.approx([-half, half], abs=1e-6)


def test_scatter_widens_the_interval():
    # Accuracies 0.5 ± 0.1 about no slope: residuals −1/30, 2/30, −1/30 from the mean line.
    calm = fit_scaling([ScalingPoint(9, math.exp(x), 0.5, 1000) for x in range(3)])
    wild = fit_scaling([ScalingPoint(9, math.exp(x), 0.5 + 0.1 * (x == 1), 1000) for x in range(3)])
    # One degree of freedom: weights 4000, squares 4000·(1 + 4 + 1)/900, about 27 times the pairs' noise.
    assert wild.scatter == pytest.approx(27, rel=0.05)
    width = [found.c.ci[1] - found.c.ci[0] for found in (calm, wild)]
    assert width[1] / width[0] == pytest.approx(12.706 / 1.96 * math.sqrt(wild.scatter), rel=0.02)


def test_one_size_tells_nothing_of_b_and_everything_of_c():
    found = fit_scaling([exact(10**5, d) for d in (1000, 2000, 4000)])
    assert found.b is None
    assert found.notes == {"b": "not identifiable: 1 size, 3 are needed"}
    assert found.c.value == pytest.approx(0.03, abs=ROUNDING)
    assert found.forecast.four_times_the_parameters is None
    assert found.forecast.twice_the_comparisons.gain.value == pytest.approx(0.03 * math.log(2))


def test_the_forecast_begins_where_training_ended():
    # The last block of a learning curve lies before the end; twice 6000, not twice 4000.
    found = fit_scaling([exact(10**5, d) for d in (1000, 2000, 4000)], comparisons=6000)
    labels = found.forecast.twice_the_comparisons
    assert found.comparisons == 6000
    assert labels.accuracy.value == pytest.approx(exact(10**5, 12000).accuracy, abs=ROUNDING)
    assert labels.gain.value == pytest.approx(0.03 * math.log(2), abs=ROUNDING)


def test_two_sizes_use_the_points_of_the_last_one_only():
    other = [ScalingPoint(10, d, 0.9, 1000) for d in (1000, 2000, 4000)]
    found = fit_scaling([*other, *(exact(10**5, d) for d in (1000, 2000, 4000))])
    assert found.notes["b"] == "not identifiable: 2 sizes, 3 are needed"
    assert found.num_points == 3
    assert found.c.value == pytest.approx(0.03, abs=ROUNDING)


def test_one_model_is_a_mean_with_its_interval():
    found = fit_scaling([ScalingPoint(10**5, 1000, 0.6, 98)])
    assert found.a.value == pytest.approx(0.6)
    # (0.6·98 + 1)/100 = 0.598
    half = 1.959964 * math.sqrt(0.598 * 0.402 / 98)
    assert found.a.ci == pytest.approx([0.6 - half, 0.6 + half], abs=1e-6)
    assert found.c is None
    assert found.notes["c"] == "not identifiable: 1 number of comparisons, 3 are needed"
    assert found.forecast == Forecasts(twice_the_comparisons=None, four_times_the_parameters=None)


def test_sizes_that_rise_with_the_comparisons_identify_neither():
    found = fit_scaling([exact(10 * d, d) for d in (1000, 2000, 4000, 8000)])
    assert found.b is found.c is None
    assert "rise together" in found.notes["b"]


def test_a_planted_plane_lies_within_the_intervals_as_often_as_they_say():
    generator = random.Random(0)
    covered = {"b": 0, "c": 0}
    for _ in range(NUM_FITS):
        points = []
        for p in (10**4, 10**5, 10**6):
            for d in (1000, 3000, 9000):
                true = 0.1 + 0.02 * math.log(p) + 0.03 * math.log(d)
                right = sum(generator.random() < true for _ in range(400))
                points.append(ScalingPoint(p, d, right / 400, 400))
        found = fit_scaling(points)
        for name, planted in (("b", 0.02), ("c", 0.03)):
            low, high = getattr(found, name).ci
            covered[name] += low < planted < high
    assert min(covered.values()) >= LEAST_COVERED
    # And not always: an interval that is far too wide says nothing. The wider of two covers more than 95 %.
    assert max(covered.values()) < NUM_FITS


def test_no_points_are_refused():
    with pytest.raises(ValueError, match="0 points"):
        fit_scaling([])


def test_learning_curve_doubles_from_block_to_block():
    # 256 pairs in batches of 32: steps 1 to 8. Blocks [128, 256): steps 5 to 8; [64, 128): 3, 4; [32, 64): 2.
    shares = {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.75, 5: 0.75, 6: 0.75, 7: 1.0, 8: 1.0}
    # A second epoch sees pairs again and is no part of the curve.
    steps = [*shares.items(), *((step, 1.0) for step in range(9, 17))]
    curve = learning_curve(steps, num_pairs=256, batch_pairs=32)
    assert [block.n for block in curve] == [32, 64, 128]
    assert [block.accuracy for block in curve] == [0.5, 0.625, 0.875]
    # The pairs seen before the steps of each block, their geometric mean.
    assert curve[0].comparisons == pytest.approx(32)
    assert curve[1].comparisons == pytest.approx(math.sqrt(64 * 96))
    assert curve[2].comparisons == pytest.approx((128 * 160 * 192 * 224) ** 0.25)


def test_learning_curve_counts_a_short_last_batch_and_needs_enough_pairs():
    # 72 pairs in batches of 32: the third step has 8. One block, [36, 72): only step 3, which 64 came before.
    (block,) = learning_curve([(1, 0.5), (2, 0.5), (3, 0.75)], num_pairs=72, batch_pairs=32)
    assert (block.n, block.accuracy) == (8, 0.75)
    assert block.comparisons == pytest.approx(64)
    assert learning_curve([(1, 0.5), (2, 0.5)], num_pairs=60, batch_pairs=32) == ()
