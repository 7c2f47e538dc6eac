"""PPO finds the policy that is best by enumeration, and a PPO that is wrong in one place does not.

The world is benchmarks/known_answer.py: two prompts, replies of up to two tokens, a reward by table.
"""

import dataclasses
import json

import pytest
import torch

from benchmarks import known_answer
from benchmarks.known_answer import (
    LONGEST,
    NEAR_NATS,
    PROMPTS,
    RUNS,
    KnownReward,
    all_replies,
    distance_from_optimum,
    train,
    write_world,
)
from models.chat.format import ChatFormat
from models.policy import learning
from models.policy.ppo import leave_one_out
from models.policy.settings import PPOSettings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    yield write_world(tmp_path_factory.mktemp("known") / "world")
    torch.use_deterministic_algorithms(False)


def trained_distance(world, out, kl_coef, change=None, **settings):
    training = train(world, out, {"kl_coef": kl_coef} | settings, change=change)
    return distance_from_optimum(world, training.policy.model, kl_coef, LONGEST)


def test_world_is_what_it_says(world):
    chat, known = ChatFormat.load(world / "initial"), KnownReward(world / "initial")
    replies = list(all_replies(chat, 11, LONGEST))
    assert len(replies) == 1 + 10 * 11  # the end at once, or one of ten others and any of eleven after it
    assert len(PROMPTS) == 2
    # "a" to prompt a: 0.5 * 1.0. "ab": 0.5 * 1.0 + 0.3 * 0.3. "cc" to prompt b: 0.5 + 0.3 - 0.2.
    rewards = [known.reward("a", "a"), known.reward("a", "ab"), known.reward("b", "cc")]
    assert rewards == pytest.approx([0.5, 0.59, 0.6])
    dialogue = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "cc"}]
    assert known.score_sequences([chat.score_ids(dialogue)]) == [pytest.approx(0.6)]
    # The initial policy passes for no coefficient, so that passing means having learned.
    assert all(
        distance_from_optimum(world, world / "initial", kl_coef, LONGEST) > NEAR_NATS for kl_coef in (0.1, 0.3, 1)
    )


@pytest.mark.parametrize(
    ("kl_coef", "settings"),
    [pytest.param(*run, marks=[] if run[0] == 0.3 else pytest.mark.slow) for run in RUNS.items()],
)
def test_ppo_finds_the_best_policy(world, tmp_path, kl_coef, settings):
    assert trained_distance(world, tmp_path / "run", kl_coef, **settings) < NEAR_NATS


# The defaults are 40 rollouts of 64 replies: at their small rate two thirds of the way, at ten times that all of it.
@pytest.mark.parametrize(("rate", "left"), [(1e-4, 0.5), (1e-3, 0.1)])
def test_the_default_settings_lead_towards_the_best_policy(world, tmp_path, monkeypatch, rate, left):
    monkeypatch.setattr(known_answer, "SETTINGS", {"max_reply_tokens": LONGEST})
    assert PPOSettings().learning_rate == 1e-4
    before = distance_from_optimum(world, world / "initial", 0.3, LONGEST)
    assert trained_distance(world, tmp_path / "run", 0.3, learning_rate=rate) < left * before


RLOO = {"advantage": "rloo", "prompts_per_iteration": 128, "samples_per_prompt": 4}


@pytest.mark.slow
def test_leaving_one_out_finds_the_best_policy_without_a_critic(world, tmp_path):
    training = train(world, tmp_path / "run", {"kl_coef": 0.3} | RLOO)
    assert training.critic is None
    asked = [prompt.id for prompt in training._prompts(0)]
    assert asked == [prompt for prompt in asked[::4] for _ in range(4)]
    assert len(asked) == 512
    assert distance_from_optimum(world, training.policy.model, 0.3, LONGEST) < NEAR_NATS
    result = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["episode"] == 32 * 128 * 4


@pytest.mark.slow
def test_a_baseline_of_other_prompts_is_found_out(world, tmp_path, monkeypatch):
    def shuffled(rewards, response_mask, samples):
        order = torch.arange(len(rewards)).view(samples, -1).T.reshape(-1)
        found = leave_one_out(rewards[order], response_mask[order], samples)
        return found.roll(1, dims=0)

    monkeypatch.setattr(learning, "leave_one_out", shuffled)
    assert trained_distance(world, tmp_path / "run", 0.3, **RLOO) > NEAR_NATS


@pytest.mark.slow
def test_a_flipped_kl_sign_is_found_out(world, tmp_path, monkeypatch):
    rewards = learning.token_rewards
    monkeypatch.setattr(learning, "token_rewards", lambda s, kl, *rest: rewards(s, -kl, *rest))
    # A right one is 0.03 from it after as many iterations.
    assert trained_distance(world, tmp_path / "run", 0.3, iterations=16) > 1.0


@pytest.mark.slow
def test_an_advantage_on_the_wrong_token_is_found_out(world, tmp_path, monkeypatch):
    estimate = learning.advantages_and_returns

    def shifted(*args):
        advantages, returns = estimate(*args)
        return advantages.roll(1, dims=1), returns

    monkeypatch.setattr(learning, "advantages_and_returns", shifted)
    assert trained_distance(world, tmp_path / "run", 0.3) > NEAR_NATS


@pytest.mark.slow
def test_a_doubled_kl_coefficient_is_found_out(world, tmp_path):
    def double(training):
        training.learner.kl_coef *= 2
        doubled = dataclasses.replace(training.settings, kl_coef=training.learner.kl_coef)
        training.settings = training.learner.settings = doubled

    assert trained_distance(world, tmp_path / "run", 0.3, change=double) > NEAR_NATS
