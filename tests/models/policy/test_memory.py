"""PPO learns the same, however much of a minibatch is in memory at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone.recomputation import _Recomputed
from models.chat.format import ChatFormat
from models.policy.settings import PPOSettings
from models.policy.training import PolicyTraining
from models.runtime.settings import settings_from
from tests.models.ppo_runs import metrics, ppo_job

WHOLE = 256
"""More than the tokens of a minibatch, which is then one chunk."""
TOLERANCE = 1e-3
"""Of the largest move of a tensor: sums in another order, after six steps of Adam."""


@pytest.fixture
def training_of(policy_dir: Path, scorer_dir: Path, prompts_dir: Path, tmp_path: Path):
    """Gives a run that has not begun: training_of(**settings)."""

    def make(**settings: Any) -> PolicyTraining:
        inputs = {"initial": policy_dir, "preference_model": scorer_dir, "prompts": prompts_dir}
        job = ppo_job(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", inputs, {"epochs": 3} | settings)
        return PolicyTraining(job, settings_from(PPOSettings, job.settings), ChatFormat.load(policy_dir))

    yield make
    torch.use_deterministic_algorithms(False)


def learned(training: PolicyTraining) -> tuple[list[Tensor], int]:
    """The weights after one rollout was learned from, and in how many chunks each minibatch was read, at most."""
    rollout, chunks = training._rollout(0)
    assert training.learner.learn(0, rollout, chunks) is not None
    assert training.learner.optimiser_steps == 6
    models = (training.policy.model, training.critic)
    return [parameter.detach() for model in models for parameter in model.parameters()], max(map(len, chunks))


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_weights_are_the_same_for_any_budget(training_of, critic: str) -> None:
    start = training_of(critic=critic)
    before = [parameter.detach() for model in (start.policy.model, start.critic) for parameter in model.parameters()]
    whole, chunks = learned(training_of(critic=critic, forward_tokens=WHOLE))
    assert chunks == 1
    for budget, at_least in ((WHOLE // 2, 2), (WHOLE // 8, 5)):
        weights, chunks = learned(training_of(critic=critic, forward_tokens=budget))
        assert chunks >= at_least
        for mine, its, then in zip(weights, whole, before, strict=True):
            assert (mine - its).abs().max() <= TOLERANCE * (its - then).abs().max()


@pytest.mark.parametrize("settings", [{"critic": "shared"}, {"critic": "separate"}, {"lora_rank": 4}])
def test_weights_are_the_same_where_activations_are_computed_again(training_of, settings) -> None:
    kept, _ = learned(training_of(**settings))
    training = training_of(recompute_activations=True, **settings)
    again, _ = learned(training)
    assert all(torch.equal(mine, its) for mine, its in zip(again, kept, strict=True))
    trained = [training.policy.model.base_model, *([training.critic.trunk] if training.critic.trunk else [])]
    assert all(isinstance(layer, _Recomputed) for trunk in trained for layer in trunk.layers)


@pytest.mark.parametrize("settings", [{}, {"kl_estimator": "full"}, {"kl_estimator": "full", "critic": "separate"}])
def test_weights_are_the_same_for_any_number_of_logits_at_once(training_of, settings) -> None:
    start = training_of(**settings)
    before = [parameter.detach() for model in (start.policy.model, start.critic) for parameter in model.parameters()]
    whole, _ = learned(training_of(**settings))
    for limit in (32, 5):
        training = training_of(logits_tokens=limit, **settings)
        rollout, _ = training._rollout(0)
        assert int(rollout.reply_tokens.sum()) > limit
        # Policy and reference are equal, and read alike.
        assert rollout.kl_nats.abs().max() == 0.0
        weights, _ = learned(training)
        for mine, its, then in zip(weights, whole, before, strict=True):
            assert (mine - its).abs().max() <= TOLERANCE * (its - then).abs().max()


def test_the_first_ratio_is_exactly_one_with_few_logits_at_once(train) -> None:
    lines = metrics(train(iterations=2, logits_tokens=3))
    assert [line["val/ratio_first"] for line in lines] == [1.0, 1.0]


def test_all_models_of_a_run_keep_to_the_budget(training_of) -> None:
    training = training_of(forward_tokens=32)
    assert training.collector.chunk_tokens == training.collector.preference_model.chunk_tokens == 32
    assert training_of().collector.chunk_tokens == 1024
