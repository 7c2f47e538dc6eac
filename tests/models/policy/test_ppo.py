"""The maths of PPO against hand-worked numbers."""

import math

import pytest
import torch

from models.policy.ppo import (
    adapted_kl_coef,
    advantages_and_returns,
    best_of_n_kl,
    clipped_tokens,
    full_kl,
    k1_kl,
    k3_kl,
    leave_one_out,
    policy_losses,
    reply_kl,
    scheduled_learning_rate,
    token_moves,
    token_rewards,
    value_losses,
    warmed_up,
    whiten,
)

ROUNDING = 1e-6


def mask(*lengths: int, width: int | None = None) -> torch.Tensor:
    return torch.arange(width or max(lengths))[None] < torch.tensor(lengths)[:, None]


def test_score_lands_on_the_last_real_token():
    # Reply 0 has three tokens, reply 1 one: score on column 2 and column 0, penalty 0.1 per nat everywhere.
    log_ratios = torch.tensor([[1.0, 2.0, -1.0, 9.0], [0.5, 9.0, 9.0, 9.0]])
    rewards = token_rewards(torch.tensor([5.0, -3.0]), log_ratios, mask(3, 1, width=4), kl_coef=0.1)
    expected = torch.tensor([[-0.1, -0.2, 5.1, 0.0], [-3.05, 0.0, 0.0, 0.0]])
    assert torch.allclose(rewards, expected, atol=ROUNDING)


def test_rewards_of_a_reply_sum_to_score_minus_penalty():
    generator = torch.Generator().manual_seed(0)
    log_ratios = torch.randn(4, 6, generator=generator)
    rows = mask(6, 1, 3, 5)
    scores = torch.tensor([1.0, -2.0, 0.0, 3.0])
    rewards = token_rewards(scores, log_ratios, rows, kl_coef=0.05)
    kl = reply_kl(log_ratios, torch.zeros_like(log_ratios), rows)
    assert torch.allclose(rewards.sum(1), scores - 0.05 * kl, atol=ROUNDING)


def test_penalty_may_stand_beside_the_score_or_not_in_the_reward_at_all():
    # Reply 0: -0.1 * (1 + 2 - 1) = -0.2 beside 5; reply 1: -0.1 * 0.5 = -0.05 beside -3.
    scores, kl = torch.tensor([5.0, -3.0]), torch.tensor([[1.0, 2.0, -1.0, 9.0], [0.5, 9.0, 9.0, 9.0]])
    rows = mask(3, 1, width=4)
    per_reply = token_rewards(scores, kl, rows, 0.1, "per_reply")
    assert torch.allclose(per_reply, torch.tensor([[0, 0, 4.8, 0], [-3.05, 0, 0, 0]]), atol=ROUNDING)
    assert torch.equal(token_rewards(scores, kl, rows, 0.1, "loss"), torch.tensor([[0.0, 0, 5, 0], [-3, 0, 0, 0]]))


def test_kl_estimators_by_hand():
    # pi = (1/2, 1/2), pi_0 = (1/4, 3/4). Token 0: k1 = log 2, k3 = 1/2 - 1 + log 2; token 1: k1 = log 2/3,
    # k3 = 3/2 - 1 + log 2/3. Their means under pi are both the KL, 0.5 * log 4/3 = 0.143841.
    logps, ref_logps = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    k1, k3 = k1_kl(logps, ref_logps), k3_kl(logps, ref_logps)
    assert k1.tolist() == pytest.approx([0.693147, -0.405465], abs=ROUNDING)
    assert k3.tolist() == pytest.approx([0.193147, 0.094535], abs=ROUNDING)
    full = full_kl(logps[None], ref_logps[None])
    assert [k1.mean().item(), k3.mean().item(), full.item()] == pytest.approx([0.143841] * 3, abs=ROUNDING)
    assert k3_kl(logps, logps.clone()).tolist() == [0.0, 0.0]


def test_gradients_of_the_kl_estimators_in_the_loss():
    # By the logit of token 0, with pi = (1/2, 1/2) and pi_0 = (1/4, 3/4):
    # exact KL(pi, pi_0): pi(0) * (k1(0) - KL) = 0.5 * (0.693147 - 0.143841) = 0.274653.
    # k3, averaged over tokens drawn from pi: grad KL(pi_0, pi) = pi(0) - pi_0(0) = 0.25. k1: zero.
    ref_logps = torch.tensor([[0.25, 0.75]]).log()
    gradients = []
    for estimate in (
        lambda logits: full_kl(logits, ref_logps)[0],
        lambda logits: (0.5 * k3_kl(torch.log_softmax(logits, -1), ref_logps)).sum(),
        lambda logits: (0.5 * k1_kl(torch.log_softmax(logits, -1), ref_logps)).sum(),
    ):
        logits = torch.zeros(1, 2, requires_grad=True)
        estimate(logits).backward()
        gradients.append(logits.grad[0, 0].item())
    assert gradients == pytest.approx([0.274653, 0.25, 0.0], abs=ROUNDING)


def test_kl_coefficient_follows_its_target():
    # 64 of 640 replies: K = 0.1. KL 5.5 of 5 is 10 % too much: 1 + 0.1 * 0.1. Errors are cut at 20 %.
    assert adapted_kl_coef(0.5, 5.5, 5.0, 64, 640) == pytest.approx(0.505)
    assert adapted_kl_coef(0.5, 500.0, 5.0, 64, 640) == pytest.approx(0.51)
    assert adapted_kl_coef(0.5, -1.0, 5.0, 64, 640) == pytest.approx(0.49)
    assert adapted_kl_coef(0.5, 5.0, 5.0, 64, 640) == 0.5


def test_a_reply_without_tokens_is_refused():
    with pytest.raises(ValueError, match="reply 1 of 2"):
        token_rewards(torch.zeros(2), torch.zeros(2, 3), mask(3, 0, width=3), 0.0)


def test_advantages_of_three_tokens_by_hand():
    # discount 0.9, lambda 0.5, so the factor is 0.45; values 0.5, 1.0, 2.0; rewards 0, 1, 3.
    # delta_2 = 3 + 0 - 2                = 1.0      A_2 = 1.0
    # delta_1 = 1 + 0.9 * 2.0 - 1.0      = 1.8      A_1 = 1.8 + 0.45 * 1.0  = 2.25
    # delta_0 = 0 + 0.9 * 1.0 - 0.5      = 0.4      A_0 = 0.4 + 0.45 * 2.25 = 1.4125
    advantages, returns = advantages_and_returns(
        torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.5, 1.0, 2.0]]), mask(3), 0.9, 0.5
    )
    assert torch.allclose(advantages, torch.tensor([[1.4125, 2.25, 1.0]]), atol=ROUNDING)
    assert torch.allclose(returns, torch.tensor([[1.9125, 3.25, 3.0]]), atol=ROUNDING)


def test_with_lambda_one_the_return_is_the_sum_of_later_rewards():
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    values = torch.tensor([[0.3, -0.7, 1.1, 5.0]])
    _, returns = advantages_and_returns(rewards, values, mask(4), 1.0, 1.0)
    assert torch.allclose(returns, torch.tensor([[15.0, 14.0, 12.0, 8.0]]), atol=ROUNDING)


def test_padding_changes_no_advantage():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
    plain = advantages_and_returns(rewards, values, mask(2), 0.9, 0.8)
    junk = torch.tensor([[7.0, -7.0, 7.0]])
    padded = advantages_and_returns(
        torch.cat([rewards, junk], 1), torch.cat([values, junk], 1), mask(2, width=5), 0.9, 0.8
    )
    for short, long in zip(plain, padded, strict=True):
        assert torch.equal(long[:, :2], short)
        assert torch.equal(long[:, 2:], torch.zeros(1, 3))


def test_leave_one_out_by_hand():
    # Two prompts, three replies each; what a reply earned is the sum of its row.
    # 5 - (2 + -1)/2 = 4.5; 2 - (5 + -1)/2 = 0; -1 - (5 + 2)/2 = -4.5. Three equal ones: 0.
    rewards = torch.tensor([[1.0, 4.0], [2.0, 0.0], [-2.0, 1.0], [0.5, 0.5], [1.0, 0.0], [3.0, -2.0]])
    found = leave_one_out(rewards, mask(2, 1, 2, 2, 1, 2), 3)
    expected = torch.tensor([[4.5, 4.5], [0.0, 0.0], [-4.5, -4.5], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert torch.allclose(found, expected, atol=ROUNDING)
    # Of two replies the other one is the baseline, and nothing is said where there is no token.
    found = leave_one_out(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), mask(1, 1, width=2), 2)
    assert found.tolist() == [[2.0, 0.0], [-2.0, 0.0]]


@pytest.mark.parametrize("samples", [1, 4])
def test_leave_one_out_needs_whole_groups(samples):
    with pytest.raises(ValueError, match=f"6 replies in groups of {samples}"):
        leave_one_out(torch.zeros(6, 2), mask(*[2] * 6), samples)


def test_policy_loss_of_four_tokens_by_hand():
    # ratios 1.5, 0.5, 1.5, 0.5 with clip 0.2; loss = max(-A r, -A clip(r)).
    # A = +1: r 1.5 -> max(-1.5, -1.2) = -1.2; r 0.5 -> max(-0.5, -0.8) = -0.5
    # A = -1: r 1.5 -> max( 1.5,  1.2) =  1.5; r 0.5 -> max( 0.5,  0.8) =  0.8
    logps = torch.tensor([1.5, 0.5, 1.5, 0.5]).log()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    losses = policy_losses(logps, torch.zeros(4), advantages, 0.2)
    assert torch.allclose(losses, torch.tensor([-1.2, -0.5, 1.5, 0.8]), atol=ROUNDING)
    assert clipped_tokens(logps, torch.zeros(4), advantages, 0.2).tolist() == [True, False, False, True]


def test_moves_of_tokens_by_hand():
    # Ratios 2 and 1/2 are moves of log 2; one of 3,000 is log 3000 = 8.006 and counts for 5.
    moves = token_moves(torch.tensor([2.0, 0.5, 3000.0, 1.0]).log(), torch.zeros(4))
    assert moves.tolist() == pytest.approx([0.693147, 0.693147, 5.0, 0.0], abs=ROUNDING)


def test_policy_gradient_raises_the_probability_of_good_tokens():
    # At ratio 1 the gradient of the loss by the log-prob is exactly -A.
    logps = torch.zeros(2, requires_grad=True)
    policy_losses(logps, torch.zeros(2), torch.tensor([2.0, -3.0]), 0.2).sum().backward()
    assert torch.equal(logps.grad, torch.tensor([-2.0, 3.0]))


def test_clipped_tokens_have_no_gradient():
    logps = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    policy_losses(logps, torch.zeros(4), advantages, 0.2).sum().backward()
    assert (logps.grad == 0).tolist() == clipped_tokens(logps.detach(), torch.zeros(4), advantages, 0.2).tolist()


def test_value_loss_by_hand():
    # Plain: 0.5 * (3 - 1)^2 = 2 and 0.5 * (1.2 - 1)^2 = 0.02.
    # Clipped to 0.5 around the old value: 3 becomes 2.5, whose 1.125 is less than 2; 1.2 becomes 1.7, whose
    # 0.5 * 0.7^2 = 0.245 is more than 0.02. The larger counts.
    values, old, returns = torch.tensor([3.0, 1.2]), torch.tensor([2.0, 2.2]), torch.tensor([1.0, 1.0])
    assert torch.allclose(value_losses(values, old, returns, None), torch.tensor([2.0, 0.02]), atol=ROUNDING)
    assert torch.allclose(value_losses(values, old, returns, 0.5), torch.tensor([2.0, 0.245]), atol=ROUNDING)


def test_whitened_values_have_mean_zero_and_variance_one():
    # 1, 2, 3: mean 2, variance 2/3, so that the ends lie at sqrt(3/2) = 1.2247.
    assert torch.allclose(whiten(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-1.2247449, 0.0, 1.2247449]))
    assert torch.equal(whiten(torch.full((5,), 7.0)), torch.zeros(5))
    with pytest.raises(ValueError, match="nothing to whiten"):
        whiten(torch.zeros(0))


def test_kl_counts_real_tokens_only_and_equal_log_probs_give_exactly_zero():
    logps = torch.tensor([[-1.0, -2.0, -9.0]])
    assert reply_kl(logps, torch.tensor([[-1.5, -4.0, 0.0]]), mask(2, width=3)).tolist() == [2.5]
    assert reply_kl(logps, logps.clone(), mask(3)).tolist() == [0.0]


def test_best_of_n_kl():
    # log 16 - 15/16 = 2.772589 - 0.9375; log 64 - 63/64 = 4.158883 - 0.984375
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(16) == pytest.approx(1.835089, abs=ROUNDING)
    assert best_of_n_kl(64) == pytest.approx(3.174508, abs=ROUNDING)
    with pytest.raises(ValueError, match="best of 0"):
        best_of_n_kl(0)


def test_learning_rate_warms_up_and_halves_in_units_of_samples():
    def rate(samples: int) -> float:
        return scheduled_learning_rate(1.0, samples, warmup_samples=100, halve_every_samples=1000)

    assert [rate(n) for n in (0, 25, 100, 999, 1000, 2500)] == [0.0, 0.25, 1.0, 1.0, 0.5, 0.25]
    assert scheduled_learning_rate(0.3, 10**9) == 0.3
    assert math.isclose(scheduled_learning_rate(0.0, 5, warmup_samples=10), 0.0)


def test_the_warm_up_in_steps_by_hand():
    assert [warmed_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmed_up(0, 1) == 1.0
