"""The ranking loss and the numbers read off score gaps, against arithmetic by hand."""

import math

import pytest
import torch

from models.preference_loss import count_correct, preference_loss, preference_probability, question_weights

FLOAT32_ROUNDING = 1e-6


def test_loss_of_two_pairs_by_hand():
    # Gaps 1 and 0: log(1 + e^-1) = 0.313262 and log 2 = 0.693147; their mean is 0.503204.
    loss = preference_loss(torch.tensor([3.0, 0.5]), torch.tensor([2.0, 0.5]))
    assert loss.item() == pytest.approx(0.503204, abs=FLOAT32_ROUNDING)


def test_gradient_pushes_the_better_score_up_and_the_worse_one_down():
    # d/d(better) of log(1 + e^-(b-w)) is -sigmoid(w - b); at a gap of 0 that is -1/2.
    better = torch.tensor([0.0], requires_grad=True)
    worse = torch.tensor([0.0], requires_grad=True)
    preference_loss(better, worse).backward()
    assert better.grad.item() == pytest.approx(-0.5)
    assert worse.grad.item() == pytest.approx(0.5)


def test_loss_is_finite_for_gaps_that_overflow_exp():
    # log(1 + e^1000) = 1000; the naive formula gives infinity.
    assert preference_loss(torch.tensor([0.0]), torch.tensor([1000.0])).item() == pytest.approx(1000.0)


def test_weights_multiply_the_terms_and_leave_the_divisor():
    # Weights 0.5 and 1.5 on terms log 2 each: (0.5 + 1.5)·0.693147 / 2 = 0.693147; on gaps 1 and 0:
    # (0.5·0.313262 + 1.5·0.693147) / 2 = 0.598176.
    weights = torch.tensor([0.5, 1.5])
    loss = preference_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), weights)
    assert loss.item() == pytest.approx(0.598176, abs=FLOAT32_ROUNDING)


def test_loss_of_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="0 pairs"):
        preference_loss(torch.tensor([]), torch.tensor([]))


def test_question_weights_by_hand():
    # Raw weights 1, 1, 4 have mean 2; divided by it 0.5, 0.5, 2.
    weights = question_weights(["helpful", "helpful", "harmless"], harmless_weight=4.0)
    assert weights.tolist() == [0.5, 0.5, 2.0]


def test_weight_zero_for_every_pair_is_an_error():
    with pytest.raises(ValueError, match="harmless_weight"):
        question_weights(["harmless"], harmless_weight=0.0)


def test_ties_count_half():
    assert count_correct([0.3, -0.1, 0.0, 2.0]) == 2.5


def test_probability_of_a_gap_of_one_is_73_percent():
    assert preference_probability(torch.tensor(1.0)).item() == pytest.approx(0.731059, abs=FLOAT32_ROUNDING)
    assert preference_probability(torch.tensor(math.log(3))).item() == pytest.approx(0.75, abs=FLOAT32_ROUNDING)
