"""Intervals against published tables and hand-worked numbers."""

import math

import pytest

from models.statistics.intervals import (
    clustered,
    mean_interval,
    mean_interval_json,
    share_interval,
    student_quantile,
    wilson,
)

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


def test_design_effect_of_four_outcomes_in_two_dialogues():
    # Mean 1/2, sums of errors +1 and -1. Ratio: 2/1 * (1 + 1) = 4 over 4/3 * 4 * 1/4 = 4/3, which is 3. Analysis of
    # variance: nothing within, correlation 1, so 1 + (2 - 1) = 2. The larger.
    assert clustered([1, 1, 0, 0], ["a", "a", "b", "b"]) == (pytest.approx(3), 2)
    # Each dialogue with one of each: less variance than by chance, which is not believed.
    assert clustered([1, 0, 1, 0], ["a", "a", "b", "b"]) == (1, 2)


def test_design_effect_of_uneven_dialogues():
    # Outcomes 1 1 1 | 0 | 1 | 0 | 1 0: mean 5/8, squares 5 * (3/8)^2 + 3 * (5/8)^2 = 15/8. Sums of errors
    # 9/8, -5/8, 3/8, -5/8, -2/8, their squares 144/64 in all; ratio 5/4 * 2.25 over 8/7 * 15/8 = 1.3125.
    # m = (9 + 1 + 1 + 1 + 4) / 8 = 2. Between: (81/3 + 25 + 9 + 25 + 4/2) / 64 = 1.375 over 4 = 0.34375; within
    # (1.875 - 1.375) / 3 = 1/6; size (8 - 2) / 4 = 1.5; correlation 0.17708 / 0.42708 = 0.41463; 1 + 0.41463 is more.
    outcomes, dialogues = [1, 1, 1, 0, 1, 0, 1, 0], [1, 1, 1, 2, 3, None, 4, 4]
    effect, number = clustered(outcomes, dialogues)
    assert (effect, number) == (pytest.approx(1.41463, abs=1e-5), 5)
    # A permutation of the comparisons, and an exchange of right and wrong, change nothing.
    order = [3, 7, 0, 5, 2, 6, 1, 4]
    assert clustered([1 - outcomes[i] for i in order], [dialogues[i] for i in order]) == (pytest.approx(effect), 5)


def test_dialogues_of_one_comparison_or_none_known_have_wilsons_interval():
    outcomes = [1.0] * 8 + [0.0] * 2
    assert clustered(outcomes, range(10)) == (1.0, 10)
    assert clustered(outcomes, [None] * 10) == clustered(outcomes, None) == (1.0, None)
    assert share_interval(0.8, 10, num_clusters=10) == share_interval(0.8, 10) == wilson(8, 10)


def test_an_interval_of_dependent_comparisons_counts_dialogues():
    # All alike within four dialogues of five: a design effect of 20 / 4 = 5 at least, and Student's t of 3.
    effect, number = clustered([1.0] * 10 + [0.0] * 10, [i // 5 for i in range(20)])
    # 4/3 * 4 * 2.5^2 = 33.33 over 20/19 * 5 = 5.263.
    assert (effect, number) == (pytest.approx(19 / 3), 4)
    # n = 3.1579, t = 3.1824, t^2 = 10.128: half = 3.1824 / (1 + 10.128 / 3.1579) * sqrt(0.25 / 3.1579 + 10.128 / (4 *
    # 9.9723)) = 0.75638 * 0.57729 = 0.43665.
    low, high = share_interval(0.5, 20, design_effect=effect, num_clusters=number)
    assert (low, high) == (pytest.approx(0.0634, abs=TABLE), pytest.approx(0.9366, abs=TABLE))


def test_outcomes_all_alike_count_as_one_for_each_dialogue_and_one_dialogue_tells_nothing():
    assert clustered([1.0] * 12, [i // 3 for i in range(12)]) == (3, 4)
    assert share_interval(1.0, 12, design_effect=3, num_clusters=1) == (0.0, 1.0)


def test_mean_interval_of_dependent_values():
    # Two dialogues, mean 2.5: sums of errors -2 and 2, so 2/1 * 8 = 16, error 4 / 4 = 1, Student's t of 1: 12.706.
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0], clusters=["a", "a", "b", "b"])
    assert (mean, low, high) == (2.5, pytest.approx(-10.206, abs=TABLE), pytest.approx(15.206, abs=TABLE))
    assert mean_interval([1.0, 2.0], clusters=["a", "a"]) == (1.5, -math.inf, math.inf)
    assert mean_interval_json([1.0, 2.0], clusters=["a", "a"]) == (1.5, [None, None])


def test_mean_interval_of_uneven_dialogues():
    # Ten times the outcomes of the design effect of uneven dialogues, above: effect 1.41463, five dialogues, Student's
    # t of 4: 2.7764. Mean 6.25, squares 187.5; the error sqrt(187.5 / 7 / 8 * 1.41463) = 2.17635, half 6.0425.
    values, dialogues = [10.0, 10, 10, 0, 10, 0, 10, 0], [1, 1, 1, 2, 3, None, 4, 4]
    found = mean_interval(values, clusters=dialogues)
    assert found == (6.25, pytest.approx(6.25 - 6.0425, abs=TABLE), pytest.approx(6.25 + 6.0425, abs=TABLE))
    # Whatever the unit, and whatever the order.
    shifted = mean_interval([value - 3.0 for value in values[::-1]], clusters=dialogues[::-1])
    assert [end + 3.0 for end in shifted] == pytest.approx(found)


def test_dialogues_of_one_value_each_give_the_interval_of_independent_values_to_the_last_bit():
    values = [0.1, -2.7, 3.3, 1 / 3, 0.7]
    assert mean_interval(values, clusters=["a", "b", "c", None, None]) == mean_interval(values)
    # Less spread between dialogues than by chance is not believed, but their number is: Student's t of 1, not of 3.
    _, low, high = mean_interval([1.0, -1.0, 1.0, -1.0], clusters=["a", "a", "b", "b"])
    assert (low, high) == (pytest.approx(-12.706 * math.sqrt(1 / 3), abs=TABLE), pytest.approx(-low))


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
