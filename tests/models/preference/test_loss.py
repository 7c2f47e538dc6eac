"""The ranking loss and the numbers read off score gaps, against arithmetic by hand."""

import math
from array import array

import pytest
import torch

from models.preference.loss import (
    ordered_rightly,
    preference_loss,
    question_weights,
    soft_targets,
)
from models.preference.pairs import TokenPair
from models.preference.settings import check_targets

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


def test_soft_targets_by_hand():
    # Gap 1: log(1 + e^-1) = 0.313262 if right, log(1 + e) = 1.313262 if wrong. With t = 0.8:
    # 0.8 * 0.313262 + 0.2 * 1.313262 = 0.513262. A tie at gap 1: (0.313262 + 1.313262) / 2 = 0.813262.
    better, worse = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])
    loss = preference_loss(better, worse, targets=torch.tensor([0.8, 0.5]))
    assert loss.item() == pytest.approx((0.513262 + 0.813262) / 2, abs=FLOAT32_ROUNDING)
    # Certain targets are the loss without targets, to the last bit.
    gaps = torch.tensor([1.0, -0.3])
    assert preference_loss(gaps, torch.zeros(2), targets=torch.ones(2)) == preference_loss(gaps, torch.zeros(2))


def test_a_soft_target_is_met_at_its_log_odds_and_a_tie_at_zero():
    # d/d(gap) = sigmoid(gap) - t: 0 at log(0.8 / 0.2) = log 4, and for a tie at 0, where a hard one pushes by 1/2.
    gaps = torch.tensor([math.log(4), 0.0, 0.0], requires_grad=True)
    preference_loss(gaps, torch.zeros(3), targets=torch.tensor([0.8, 0.5, 1.0])).backward()
    assert gaps.grad.tolist() == pytest.approx([0.0, 0.0, -0.5 / 3], abs=FLOAT32_ROUNDING)


def test_swapping_a_pair_and_its_target_changes_nothing():
    better, worse, targets = torch.tensor([0.7, -2.0]), torch.tensor([0.1, 0.4]), torch.tensor([0.9, 0.65])
    swapped = preference_loss(worse, better, targets=1 - targets)
    assert preference_loss(better, worse, targets=targets).item() == pytest.approx(swapped.item(), abs=FLOAT32_ROUNDING)


def test_weights_keep_their_sign_and_mean_with_soft_targets():
    # Lambda 3 on one helpful and one harmless pair: weights 0.5 and 1.5, mean 1. With t = 0.8 and gap 1 both terms are
    # 0.513262, so the loss is that; the harmless gradient is three times the helpful one and of the same sign.
    weights = question_weights(["helpful", "harmless"], harmless_weight=3.0)
    better = torch.tensor([1.0, 1.0], requires_grad=True)
    loss = preference_loss(better, torch.zeros(2), weights, torch.tensor([0.8, 0.8]))
    assert weights.mean().item() == 1.0
    assert loss.item() == pytest.approx(0.513262, abs=FLOAT32_ROUNDING)
    loss.backward()
    # sigmoid(1) - 0.8 = -0.068941, times 0.5 / 2 and 1.5 / 2.
    assert better.grad.tolist() == pytest.approx([-0.068941 * 0.25, -0.068941 * 0.75], abs=FLOAT32_ROUNDING)


def test_targets_by_strength():
    def pair(strength=None, tie=None):
        return TokenPair("c", "s", "helpful", array("i"), array("i", [1]), array("i", [2]), strength=strength, tie=tie)

    pairs = [pair(1), pair(4), pair(), pair(tie="tie"), pair(tie="cant_tell")]
    found = soft_targets(pairs, (0.6, 0.7, 0.8, 0.9), 0.95)
    assert found.tolist() == pytest.approx([0.6, 0.9, 0.95, 0.5, 0.5], abs=FLOAT32_ROUNDING)


@pytest.mark.parametrize(
    "by_strength", [(0.6, 0.7, 0.8), (0.9, 0.8, 0.7, 0.6), (0.4, 0.6, 0.8, 0.9), (0.6, 0.7, 0.8, 1.1)]
)
def test_a_mapping_that_is_none_is_refused(by_strength):
    with pytest.raises(ValueError, match="soft_targets"):
        check_targets(by_strength, 1.0)


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
    assert ordered_rightly([0.3, -0.1, 0.0, 2.0]) == [1.0, 0.0, 0.5, 1.0]
