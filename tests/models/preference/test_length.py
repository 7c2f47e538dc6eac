"""Length baselines: the longer reply wins, and accuracy with length regressed out."""

import math

import pytest

from models.preference.loss import ordered_rightly
from models.preference.report import ScoredPair, held_out_report
from models.statistics.length_regression import length_log_odds, regress_out_length

ROUNDING = 1e-9


def test_log_odds_of_length_by_hand():
    # All differences ±1, three of four longer replies won: sigmoid(a) = 3/4, a = log 3.
    assert length_log_odds([1, 1, 1, -1]) == pytest.approx(math.log(3), abs=ROUNDING)
    # In units ten times as large the coefficient is a tenth.
    assert length_log_odds([10, 10, 10, -10]) == pytest.approx(math.log(3) / 10, abs=ROUNDING)


def test_log_odds_solve_the_score_equation_on_uneven_lengths():
    differences = [3, -1, 12, 40, -7, 5, 2, -20]
    a = length_log_odds(differences)
    # At the maximum Σ d·(1 − sigmoid(a·d)) = 0.
    assert sum(d / (1 + math.exp(a * d)) for d in differences) == pytest.approx(0, abs=1e-7)


def test_log_odds_without_a_finite_maximum_are_none():
    assert length_log_odds([1, 2, 3]) is None
    assert length_log_odds([0, 0]) is None
    assert length_log_odds([]) is None


def test_regression_by_hand():
    # Σgd = 2·2 + 1·(−1) + (−1)(−2) = 5, Σd² = 4 + 1 + 4 = 9, slope 5/9; residuals 8/9, 14/9, 1/9.
    regression = regress_out_length([2, 1, -1], [2, -1, -2])
    assert regression.score_per_token == pytest.approx(5 / 9)
    assert regression.residual_gaps == pytest.approx([8 / 9, 14 / 9, 1 / 9])
    assert sum(ordered_rightly(regression.residual_gaps)) == 3


def test_a_model_that_measures_only_length_falls_to_one_half():
    differences = [7, 3, -2, 11, 1, -5]
    regression = regress_out_length([0.1 * d for d in differences], differences)
    assert regression.score_per_token == pytest.approx(0.1)
    # "Longer wins" is right in 4 of 6; nothing is left of it: six ties are three right.
    assert sum(ordered_rightly(differences)) == 4
    assert sum(ordered_rightly(regression.residual_gaps)) == 3


def test_the_slope_does_not_see_the_labels():
    gaps, differences = [2.0, 1.0, -1.0, 0.5], [2, -1, -2, 3]
    flipped_gaps, flipped_differences = [-2.0, 1.0, 1.0, 0.5], [-2, -1, 2, 3]
    assert (
        regress_out_length(gaps, differences).score_per_token
        == regress_out_length(flipped_gaps, flipped_differences).score_per_token
    )


def test_equal_lengths_leave_the_gaps_alone():
    assert regress_out_length([1.0, -2.0], [0, 0]).residual_gaps == [1.0, -2.0]


def test_regression_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="0 pairs"):
        regress_out_length([], [])
    with pytest.raises(ValueError, match="length differences"):
        regress_out_length([1.0], [])


def test_report_by_hand():
    pairs = [
        ScoredPair("1", "x", "helpful", better_score=2.0, worse_score=0.0, length_difference=2, rater="7"),
        ScoredPair("2", "x", "helpful", better_score=1.0, worse_score=0.0, length_difference=-1),
        ScoredPair("3", "y", "harmless", better_score=0.0, worse_score=1.0, length_difference=-2, rater="7"),
    ]
    report = held_out_report(pairs)
    # Of rater 7's two comparisons one is scored right; the second pair names nobody.
    assert {rater: (entry.accuracy, entry.n) for rater, entry in report.by_rater.items()} == {"7": (0.5, 2)}
    assert (report.accuracy, report.n) == (2 / 3, 3)
    assert report.by_source["x"].accuracy == 1.0
    assert report.by_question["harmless"].accuracy == 0.0
    # log(1+e^-2) + log(1+e^-1) + log(1+e^1) = 0.126928 + 0.313262 + 1.313262 = 1.753452.
    assert report.loss == pytest.approx(1.753452 / 3, abs=1e-6)
    assert report.longer_wins.accuracy == 1 / 3
    assert report.length_regressed.accuracy == 1.0
    # One pair alone is explained by its length entirely: a tie, half right.
    assert report.length_regressed.by_source["y"].accuracy == 0.5
    # Wilson at 2 of 3: centre (2/3 + 0.6402) / 2.2805 = 0.5731, half-width 0.3654.
    assert report.ci == pytest.approx([0.2077, 0.9385], abs=1e-4)
