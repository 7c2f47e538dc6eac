"""One optimiser step of PPO, of the code that joins the pure functions, against the same step in plain torch."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from models.policy.critic import Critic
from models.policy.learning import PolicyLearner
from models.policy.model import Policy
from models.policy.reply_chunks import ReplyChunk, reply_chunks
from models.policy.rollout import Rollout
from models.policy.settings import PPOSettings
from models.runtime.job import Job
from models.sampling.engine import Completion
from tests.models.sampling.tiny_models import llama

PROMPTS, REPLIES = [[5, 6, 7], [9, 10]], [[8, 9, 3], [4, 5]]
SCORES = [1.3, -0.4]
# What the rollout knew: log-probs under the policy of then and the reference, and what the critic expected.
# Ratios of about 1.4 and 0.7 on the sides where they are clipped, and others where they are not.
OLD = torch.tensor([[-5.8, -5.4, -6.0], [-7.2, -4.9, 0.0]])
REFERENCE = torch.tensor([[-6.3, -4.4, -5.5], [-6.2, -5.4, 0.0]])
VALUES = torch.tensor([[0.2, -0.3, 0.5], [0.1, 0.4, 0.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
KL_COEF, DISCOUNT, LAMBDA, CLIP, VALUE_CLIP, VALUE_COEF, RATE = 0.2, 0.8, 0.9, 0.2, 0.1, 0.3, 1e-3


def model_and_critic(kind="shared"):
    """A policy whose log-probs differ from those of then, and a critic that expects something."""
    model = llama(num_hidden_layers=1).train()
    critic = Critic(kind, model.base_model, seed=1)
    with torch.no_grad():
        critic.head.outer.weight.copy_(0.1 * torch.randn(1, 32, generator=torch.Generator().manual_seed(2)))
        critic.head.outer.bias.fill_(0.3)
    return model, critic


def value_coef_of(critic) -> float:
    """Of a critic that is a model of its own so much that its gradient is clipped, too."""
    return VALUE_COEF if critic.trunk is None else 10 * VALUE_COEF


def reference_model():
    """Another policy, so that the KL to it is no zero."""
    reference = llama(num_hidden_layers=1).eval()
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.5)
    return reference


def learner_of(model, critic, folder: Path, **changes) -> tuple[PolicyLearner, list[ReplyChunk]]:
    plain = PPOSettings(
        learning_rate=RATE, kl_coef=KL_COEF, discount=DISCOUNT, gae_lambda=LAMBDA, clip_ratio=CLIP,
        value_clip=VALUE_CLIP, value_coef=VALUE_COEF if critic is None else value_coef_of(critic),
        whiten_advantages=True, epochs=1, warmup_samples=0,
        critic_warmup_iterations=0, prompts_per_iteration=2, minibatch_replies=2,
    )  # fmt: skip
    settings = replace(plain, **changes)
    # Two chunks of a row each: what a step sums over must not depend on it.
    chunks = [chunk for row in (0, 1)
              for chunk in reply_chunks(PROMPTS, REPLIES, [row], width=3, pad_id=0, chunk_tokens=64)]  # fmt: skip
    nobody = SimpleNamespace(reference=Policy(reference_model()), chunks=None)
    learner = PolicyLearner(Job({}, folder), settings, Policy(model), critic, nobody, lambda *_: iter([[0, 1]]))  # type: ignore[arg-type]
    return learner, chunks


def rollout() -> Rollout:
    completions = [Completion(prompt, reply, [0.0] * len(reply), "stop")
                   for prompt, reply in zip(PROMPTS, REPLIES, strict=True)]  # fmt: skip
    entropies = torch.zeros_like(OLD)
    return Rollout(
        [], completions, ["", ""], torch.tensor(SCORES), MASK, OLD.clone(), REFERENCE.clone(), entropies, VALUES.clone()
    )


def advantages_by_hand(token_kls: list[list[float]], placement: str = "per_token"):
    """Whitened advantages and value targets of the five tokens, in plain numbers, and the spread that whitened them."""
    advantages, returns = [], []
    for row, reply in enumerate(REPLIES):
        values = VALUES[row].tolist()
        rewards = [0.0 if placement == "loss" else -KL_COEF * kl for kl in token_kls[row]]
        rewards[-1] += SCORES[row]
        found, after = [0.0] * len(reply), 0.0
        for t in reversed(range(len(reply))):
            following = values[t + 1] if t + 1 < len(reply) else 0.0
            after = rewards[t] + DISCOUNT * following - values[t] + DISCOUNT * LAMBDA * after
            found[t] = after
        advantages += found
        returns += [advantage + value for advantage, value in zip(found, values, strict=False)]
    mean = sum(advantages) / 5
    spread = math.sqrt(sum((advantage - mean) ** 2 for advantage in advantages) / 5)
    return [(advantage - mean) / spread for advantage in advantages], returns, spread


def explained_by_hand(returns: list[float]) -> float:
    """1 − Var(returns − values) / Var(returns) over the five tokens."""
    left = [target - value for target, value in zip(returns, VALUES[MASK].tolist(), strict=True)]

    def variance(numbers: list[float]) -> float:
        return sum((number - sum(numbers) / 5) ** 2 for number in numbers) / 5

    return 1 - variance(left) / variance(returns)


def read(model) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs over the vocabulary and states at every reply token, row by row, by the model's own forward."""
    logps, states = [], []
    for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
        output = model(input_ids=torch.tensor([[*prompt, *reply]]), output_hidden_states=True)
        at = slice(len(prompt) - 1, len(prompt) + len(reply) - 1)
        states.append(output.hidden_states[-1][0, at])
        logps.append(torch.log_softmax(output.logits[0, at], dim=-1))
    return logps, states


def kl_to(now: Tensor, then: Tensor) -> Tensor:
    """KL of one row of log-probs over the vocabulary to another."""
    return (now.exp() * (now - then)).sum(dim=-1)


def token_kls_of(model, estimator: str) -> list[list[float]]:
    """What the rewards take for the KL at each token."""
    if estimator == "full":
        with torch.no_grad():
            rows = zip(read(model)[0], read(reference_model())[0], strict=True)
            return [kl_to(now, then).tolist() for now, then in rows]
    change = [(REFERENCE - OLD)[row][: len(reply)] for row, reply in enumerate(REPLIES)]
    return [(torch.exp(row) - 1 - row if estimator == "k3" else -row).tolist() for row in change]


def adam(model, critic) -> torch.optim.Optimizer:
    groups = [{"params": list(model.parameters())}, {"params": list(critic.head.parameters()), "lr": 10 * RATE}]
    if critic.trunk is not None:
        groups.append({"params": list(critic.trunk.parameters())})
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)


def the_same_step(
    model, critic, optimiser: torch.optim.Optimizer, estimator: str = "k1", placement: str = "per_token"
) -> tuple[float, float]:
    """The step on copies, written down from the papers; the norm of the policy's gradient, and what values explain."""
    optimiser.zero_grad()
    advantages, returns, spread = advantages_by_hand(token_kls_of(model, estimator), placement)
    explained = explained_by_hand(returns)
    everything, states = read(model)
    rows = range(len(REPLIES))
    now = torch.cat([everything[row][range(len(REPLIES[row])), REPLIES[row]] for row in rows])
    if critic.trunk is not None:
        states = [critic.trunk(input_ids=torch.tensor([[*PROMPTS[row], *REPLIES[row]]])).last_hidden_state[0]
                  [len(PROMPTS[row]) - 1 : -1] for row in rows]  # fmt: skip
    value = critic.head(torch.cat(states))
    wanted, target = torch.tensor(advantages), torch.tensor(returns)
    ratio = (now - OLD[MASK]).exp()
    policy = -torch.minimum(ratio * wanted, ratio.clamp(1 - CLIP, 1 + CLIP) * wanted).mean()
    near = torch.minimum(torch.maximum(value, VALUES[MASK] - VALUE_CLIP), VALUES[MASK] + VALUE_CLIP)
    critics = 0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2).mean()
    loss = policy + value_coef_of(critic) * critics
    if estimator == "full":
        there = read(reference_model())[0]
        kl = torch.cat([kl_to(everything[row], there[row]) for row in rows])
        # The advantages were divided by their spread, and the KL weighs against them as before.
        loss = loss + KL_COEF / spread * kl.mean()
    elif placement == "loss":
        change = REFERENCE[MASK] - now
        loss = loss + KL_COEF / spread * (change.exp() - 1 - change).mean()
    loss.backward()
    head = list(critic.head.parameters())
    if critic.trunk is None:
        norm = torch.nn.utils.clip_grad_norm_([*model.parameters(), *head], 1.0)
    else:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert torch.nn.utils.clip_grad_norm_([*critic.trunk.parameters(), *head], 1.0) > 1
    optimiser.step()
    return float(norm), explained


def weights(model, critic) -> list[Tensor]:
    return [parameter.detach() for parameter in (*model.parameters(), *critic.parameters())]


@pytest.mark.parametrize(
    ("kind", "estimator", "placement"),
    [
        ("shared", "k1", "per_token"),
        ("separate", "k1", "per_token"),
        ("shared", "k3", "per_token"),
        ("shared", "k3", "loss"),
        ("shared", "full", "loss"),
        ("shared", "full", "per_token"),
    ],
)
def test_a_step_moves_every_weight_as_the_same_step_in_plain_torch(tmp_path: Path, kind, estimator, placement) -> None:
    model, critic = model_and_critic(kind)
    other, others_critic = copy.deepcopy(model), copy.deepcopy(critic)
    before = [weight.clone() for weight in weights(model, critic)]
    # As a file spells them: equal to the words in the code, and not the same objects.
    spelt = {"kl_estimator": "".join(list(estimator)), "kl_placement": "".join(list(placement))}
    learner, chunks = learner_of(model, critic, tmp_path, **spelt)
    optimiser = adam(other, others_critic)
    # Of Adam's first step its averages cannot be told; the second, from the same old log-probs, shows them.
    for number in range(2):
        learned = learner.learn(number, rollout(), [chunks])
        norm, explained = the_same_step(other, others_critic, optimiser, estimator, placement)
        assert learned is not None
        # Clipped, or the norm's limit would not be seen; some ratios are beyond theirs and some values too.
        assert norm > 1
        assert learned["gradient_norm"] == pytest.approx(norm, rel=1e-3)
        assert learned["val/explained_variance"] == pytest.approx(explained, rel=1e-4)
        assert 0 < learned["policy/clipfrac_avg"] < 1
    for mine, its, then in zip(weights(model, critic), weights(other, others_critic), before, strict=True):
        # Adam's first step is about the rate, whatever the gradient: a small part of it must be equal too.
        assert (mine - its).abs().max() <= 2e-3 * (its - then).abs().max()
        assert (its - then).abs().max() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"discount": LAMBDA, "gae_lambda": DISCOUNT},
        {"whiten_advantages": False},
        {"value_coef": 1.0},
        {"value_clip": None},
        {"clip_ratio": 0.5},
        {"kl_coef": 0.0},
        {"learning_rate": 2 * RATE},
    ],
)
def test_each_setting_is_felt_in_the_step(changes, tmp_path: Path) -> None:
    def learned(**settings):
        model, critic = model_and_critic()
        learner, chunks = learner_of(model, critic, tmp_path)
        learner.settings = PPOSettings(**(vars(learner.settings) | settings))
        learner.kl_coef = learner.settings.kl_coef
        learner.learn(0, rollout(), [chunks])
        return torch.cat([weight.flatten() for weight in weights(model, critic)])

    assert not torch.equal(learned(**changes), learned())


def moved(weights_now: list[Tensor], then: list[Tensor]) -> float:
    """The longest way of a weight."""
    return max(float((now - before).abs().max()) for now, before in zip(weights_now, then, strict=True))


def test_the_first_steps_are_shares_of_the_rate(tmp_path: Path) -> None:
    model, critic = model_and_critic()
    learner, chunks = learner_of(model, critic, tmp_path, warmup_steps=4)
    then = [weight.clone() for weight in weights(model, critic)]
    for number, share in enumerate((0.25, 0.5, 0.75, 1.0, 1.0)):
        learned = learner.learn(number, rollout(), [chunks])
        assert learned is not None
        assert learned["lr"] == pytest.approx(share * RATE)
        assert [group["lr"] for group in learner.optimiser.param_groups] == pytest.approx(
            [share * RATE, 10 * share * RATE]
        )
        if number == 0:
            # Adam's first step is the rate in every weight whose gradient is large beside 1e-5.
            assert moved(weights(model, critic)[:-4], then[:-4]) == pytest.approx(0.25 * RATE, rel=1e-2)


def test_a_critic_that_warms_up_alone_uses_nothing_of_the_policys_warm_up(tmp_path: Path) -> None:
    model, critic = model_and_critic()
    learner, chunks = learner_of(model, critic, tmp_path, warmup_steps=4)
    learner.settings = PPOSettings(**(vars(learner.settings) | {"critic_warmup_iterations": 2, "iterations": 9}))
    rates = []
    for number in range(4):
        learner.learn(number, rollout(), [chunks])
        rates.append([group["lr"] / RATE for group in learner.optimiser.param_groups])
    # The head's own steps: 1 to 4 of 4. The policy's first one is the third.
    assert rates[2] == pytest.approx([0.25, 7.5])
    assert rates[3] == pytest.approx([0.5, 10.0])


def test_the_warm_up_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    model, critic = model_and_critic()
    learner, chunks = learner_of(model, critic, tmp_path, warmup_steps=4)
    learner.learn(0, rollout(), [chunks])
    other, other_chunks = learner_of(*model_and_critic(), tmp_path, warmup_steps=4)
    other.restore(copy.deepcopy(learner.state))
    learned = other.learn(1, rollout(), [other_chunks])
    assert learned is not None
    assert learned["lr"] == pytest.approx(0.5 * RATE)


def test_a_step_without_a_critic_moves_every_weight_as_the_same_step_in_plain_torch(tmp_path: Path) -> None:
    # What the replies earned beside their penalties, KL_COEF 0.2:
    # 1.3 - 0.2 * ((-5.8 + 6.3) + (-5.4 + 4.4) + (-6.0 + 5.5)) = 1.5; -0.4 - 0.2 * ((-7.2 + 6.2) + (-4.9 + 5.4)) = -0.3.
    # Each is the other's baseline: 1.8 at three tokens, -1.8 at two; mean 0.36, spread sqrt(3.24 - 0.1296) = 1.763632.
    advantages = torch.tensor([(1.8 - 0.36) / 1.763632] * 3 + [(-1.8 - 0.36) / 1.763632] * 2)
    model, _ = model_and_critic()
    other = copy.deepcopy(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    changes = {"advantage": "rloo", "samples_per_prompt": 2, "value_clip": None, "discount": 1.0}
    learner, chunks = learner_of(model, None, tmp_path, **changes)
    assert len(learner.optimiser.param_groups) == 1
    learned = learner.learn(0, rollout(), [chunks])
    assert learned is not None
    assert not {"loss/value_avg", "val/explained_variance"} & set(learned)

    logps = [
        torch.log_softmax(other(input_ids=torch.tensor([[*prompt, *reply]])).logits[0], dim=-1)[
            range(len(prompt) - 1, len(prompt) + len(reply) - 1), reply
        ]
        for prompt, reply in zip(PROMPTS, REPLIES, strict=True)
    ]
    ratio = (torch.cat(logps) - OLD[MASK]).exp()
    (-torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()).backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    torch.optim.AdamW(other.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0).step()
    for mine, its, then in zip(model.parameters(), other.parameters(), before, strict=True):
        assert (mine - its).abs().max() <= 2e-3 * (its - then).abs().max()
        assert (its - then).abs().max() > 0
