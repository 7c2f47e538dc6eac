"""The maths of PPO on replies, as pure functions of tensors.

Token tensors are `(B, R)`: one row per reply, right-padded, with a boolean `response_mask`
that is True where a token counts. Losses take flat `(N,)` tensors of real tokens only, so
that nothing is ever computed on padding. models/policy/learning.py puts them together.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.policy.settings import KLPlacement

# Beyond a factor of e^5 = 148 a token counts no more in `token_moves`: one of 100 adds at most 0.05 nats to their mean.
MOST_MOVE_NATS = 5.0


def earned(scores: Tensor, truncated: Sequence[bool], cut_off_penalty: float) -> Tensor:
    """(B,) what each reply earns beside its KL penalty: its PM score, less the penalty where it was cut off."""
    if not cut_off_penalty:
        return scores
    return scores - cut_off_penalty * torch.tensor(truncated, dtype=scores.dtype, device=scores.device)


def token_rewards(
    scores: Tensor,
    token_kl: Tensor,
    response_mask: Tensor,
    kl_coef: float,
    placement: KLPlacement = "per_token",
) -> Tensor:
    """Reward of every token: the KL penalty everywhere, the score on the last real token.

    The sum over a row is `score - kl_coef * KL`, with KL estimated on the sampled tokens.
    A truncated reply gets its score on its last token just like one that ended by itself.

    Args:
        scores: (B,) what each reply earns: its PM score, raw, less a penalty where one is set (`earned`).
        token_kl: (B, R) an estimate of KL(pi, pi_0) at each token, in nats; `k1_kl` for the paper's.
        response_mask: (B, R) True on reply tokens, which are contiguous from column 0.
        kl_coef: penalty per nat; raising it keeps the policy closer to the initial one.
        placement: `per_token` where it arises, `per_reply` its sum beside the score, `loss` nothing here.

    Returns:
        (B, R) rewards, 0 outside the mask.

    Source: arXiv:2204.05862 §4.1, eq. (4.1).
    """
    lengths = _reply_lengths(response_mask)
    rows = torch.arange(len(scores), device=scores.device)
    penalties = torch.where(response_mask, -kl_coef * token_kl, torch.zeros_like(token_kl))
    rewards = penalties if placement == "per_token" else torch.zeros_like(penalties)
    if placement == "per_reply":
        rewards[rows, lengths - 1] = penalties.sum(dim=1)
    rewards[rows, lengths - 1] += scores.to(rewards.dtype)
    return rewards


def k1_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL at each sampled token as log pi/pi_0, in nats: unbiased, noisy, negative at times."""
    return logps - ref_logps


def k3_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL at each sampled token as pi_0/pi - 1 - log pi_0/pi, in nats: unbiased and never negative.

    As a number it estimates KL(pi, pi_0) with less noise than k1. Its gradients are other ones: in the reward
    it pulls by grad KL(pi, pi_0) - grad KL(pi_0, pi), and in the loss, at ratio 1, by grad KL(pi_0, pi).

    Source: Schulman 2020, "Approximating KL divergence"; in the loss as Shao et al. 2024, arXiv:2402.03300, eq. (4).
    """
    change = ref_logps - logps
    return torch.expm1(change) - change


def full_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(pi, pi_0) of each row exactly, summed over the vocabulary, (N,), in nats; carries its true gradient.

    Args:
        logits, ref_logits: (N, V), finite.
    """
    logps, ref_logps = (torch.log_softmax(x.float(), dim=-1) for x in (logits, ref_logits))
    return (logps.exp() * (logps - ref_logps)).sum(dim=-1)


def adapted_kl_coef(kl_coef: float, kl_nats: float, target_nats: float, samples: int, horizon_samples: int) -> float:
    """The KL coefficient after `samples` more replies, raised where KL is above its target, lowered where below.

    The relative error is cut at 0.2 on both sides, so that one strange rollout can't run away with it.

    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. (4); their K is `samples / horizon_samples`.
    """
    error = min(max(kl_nats / target_nats - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * samples / horizon_samples)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, response_mask: Tensor, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the value targets that belong to them.

    Nothing follows the last reply token: its next value is 0, for truncated replies too,
    since a reply is one episode however it ended.

    Args:
        rewards, values: (B, R); `values[b, t]` predicts what follows before token t is chosen.
        response_mask: (B, R) True on reply tokens, contiguous from column 0.

    Returns:
        advantages (B, R) and returns (B, R) = advantages + values, both 0 outside the mask.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. (16).
    """
    # With zeros outside the mask every term of a row is zero until its last real token.
    mask = response_mask.to(rewards.dtype)
    values = values * mask
    rewards = rewards * mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        following = delta + discount * gae_lambda * following
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, advantages + values


def leave_one_out(rewards: Tensor, response_mask: Tensor, samples: int) -> Tensor:
    """What each reply earned beyond the mean of the other replies to its prompt, at each of its tokens.

    A reply is one action here: all that it earned counts for every token.

    Args:
        rewards: (B, R), 0 outside the mask; a reply earned the sum of its row.
        response_mask: (B, R) True on reply tokens.
        samples: k replies to each prompt, at least 2, which stand one after another.

    Returns:
        (B, R) advantages, 0 outside the mask; they sum to 0 over the replies to a prompt.

    Raises:
        ValueError: fewer than 2 replies to a prompt, or rows that are no multiple of them.

    Source: Ahmadian et al. 2024, arXiv:2402.14740, eq. (9); Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline
    for free".
    """
    if samples < 2 or len(rewards) % samples:
        raise ValueError(f"{len(rewards)} replies in groups of {samples}; expected groups of at least 2")
    earned_by = rewards.sum(dim=1).view(-1, samples)
    others = (earned_by.sum(dim=1, keepdim=True) - earned_by) / (samples - 1)
    advantages = (earned_by - others).view(-1, 1)
    return torch.where(response_mask, advantages, torch.zeros_like(rewards))


def whiten(values: Tensor) -> Tensor:
    """Values shifted to mean 0 and scaled to variance 1, over the whole tensor.

    Equal values become zeros rather than noise divided by nothing.

    Raises:
        ValueError: no values; the mean would be NaN and poison the optimiser.
    """
    return (values - values.mean()) * inverse_spread(values)


def inverse_spread(values: Tensor) -> Tensor:
    """One over the standard deviation of the values, (), by which `whiten` scales; finite for equal ones.

    Raises:
        ValueError: no values.
    """
    if values.numel() == 0:
        raise ValueError("nothing to whiten: the rollout holds no reply token")
    centred = values - values.mean()
    return torch.rsqrt((centred * centred).mean() + 1e-8)


def policy_losses(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip_ratio: float) -> Tensor:
    """Clipped surrogate loss of every token, (N,): positive advantage falls as the token gets likelier.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. (7), negated.
    """
    ratio = torch.exp(logps - old_logps)
    clipped = ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def clipped_tokens(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip_ratio: float) -> Tensor:
    """True where clipping removes the token's gradient, (N,).

    That is a ratio above 1 + clip with a positive advantage, or below 1 - clip with a negative one.
    """
    ratio = torch.exp(logps - old_logps)
    return ((ratio > 1.0 + clip_ratio) & (advantages > 0)) | ((ratio < 1.0 - clip_ratio) & (advantages < 0))


def token_moves(logps: Tensor, old_logps: Tensor) -> Tensor:
    """How far learning moved each token's log-prob, up or down, (N,), in nats and at most MOST_MOVE_NATS.

    Small moves are ratio errors: |log r| is about |r - 1|. The mean of the ratios themselves says little: it is 1 in
    expectation however far the policy went, and one token that was unlikely when it was sampled can make it anything.
    """
    return (logps - old_logps).abs().clamp(max=MOST_MOVE_NATS)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: float | None) -> Tensor:
    """Half squared error of the critic for every token, (N,).

    With `value_clip`, a step of more than that many PM units away from the rollout's value
    earns nothing: the larger of the clipped and the plain loss counts.

    Source: arXiv:1506.02438 (squared error); arXiv:1707.06347's reference code (clipping).
    """
    loss = (values - returns) ** 2
    if value_clip is not None:
        near = torch.clamp(values, old_values - value_clip, old_values + value_clip)
        loss = torch.maximum(loss, (near - returns) ** 2)
    return 0.5 * loss


def reply_kl(logps: Tensor, ref_logps: Tensor, response_mask: Tensor) -> Tensor:
    """Sum of log pi/pi_0 over each reply, (B,), in nats; its mean over replies sampled from pi estimates KL.

    Single replies may be negative. Identical log-probs give exactly 0.
    """
    difference = torch.where(response_mask, logps - ref_logps, torch.zeros_like(logps))
    return difference.sum(dim=1)


def best_of_n_kl(n: int) -> float:
    """KL in nats between the best of n samples and one sample: log n - (n - 1) / n.

    An upper bound, exact where scores have no ties. Best of 16: 1.835; best of 64: 3.174.

    Source: Beirami et al. 2024, arXiv:2401.01879 (bound); paper.md row 74.
    """
    if n < 1:
        raise ValueError(f"best of {n}: expected at least 1 reply per prompt")
    return math.log(n) - (n - 1) / n


def scheduled_learning_rate(
    learning_rate: float, samples: int, *, warmup_samples: int = 0, halve_every_samples: int = 0
) -> float:
    """Learning rate after `samples` replies: linear warm-up, then halved at every multiple.

    Zero switches either part off. The warm-up reaches the full rate at `warmup_samples`.

    Source: arXiv:2204.05862 §4.3 (warm-up over 25,000 samples), B.1 (halved every 100,000).
    """
    rate = learning_rate
    if warmup_samples > 0:
        rate *= min(1.0, samples / warmup_samples)
    if halve_every_samples > 0:
        rate *= 0.5 ** (samples // halve_every_samples)
    return rate


def warmed_up(step: int, warmup_steps: int) -> float:
    """Share of the learning rate that optimiser step `step`, counted from 0, takes: 1/n, 2/n … 1 over n steps.

    Adam divides the mean of a weight's gradients by their root mean square. Of one gradient that is 1 or -1 in every
    weight; of many that are noise it is sqrt((1 - 0.9) / (1 + 0.9)) = 0.23 with a beta of 0.9. So the first step is the
    longest of a run, in a direction of which least is known.

    Source: Ma and Yarats 2021, arXiv:1910.04209 (an untuned linear warm-up by steps).
    """
    return min(1.0, (step + 1) / warmup_steps)


def _reply_lengths(response_mask: Tensor) -> Tensor:
    """Number of tokens of each reply, (B,).

    Raises:
        ValueError: a reply without tokens has no place to put its reward.
    """
    lengths = response_mask.sum(dim=1)
    if bool((lengths == 0).any()):
        empty = int((lengths == 0).nonzero()[0, 0])
        raise ValueError(f"reply {empty} of {len(lengths)} has no tokens; a reply has at least one")
    return lengths
