"""Roles that learn nothing in bfloat16: half the memory, the same digits beside a policy in it, a small KL else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.backbone.precision import hold_products_in_bfloat16
from models.chat.format import ChatFormat
from models.policy.model import Policy
from models.policy.reply_chunks import reply_chunks
from models.policy.settings import PPOSettings, WatchSettings
from models.policy.training import PolicyTraining
from models.preference.model import PreferenceModel
from models.runtime.settings import settings_from
from tests.models.marked_words import write_scorer
from tests.models.ppo_runs import metrics, ppo_job
from tests.models.sampling.tiny_models import cohere, gemma3, gpt2, llama, neox, qwen2, qwen3

BFLOAT16 = {"frozen_precision": "bfloat16"}
FAMILIES = {
    "llama": llama,
    "qwen2, tied head": lambda: qwen2(tie_word_embeddings=True),
    "qwen3": qwen3,
    "gemma 3": gemma3,
    "gpt-2": gpt2,
    "gpt-neox": neox,
    "cohere": cohere,
}


@pytest.fixture
def training_of(policy_dir: Path, scorer_dir: Path, prompts_dir: Path, tmp_path: Path):
    """Gives a run that has not begun: training_of(**settings)."""

    def make(**settings: Any) -> PolicyTraining:
        inputs = {"initial": policy_dir, "preference_model": scorer_dir, "prompts": prompts_dir}
        inputs["watcher"] = write_scorer(policy_dir, tmp_path / f"watcher-{len(list(tmp_path.iterdir()))}", sign=-1.0)
        job = ppo_job(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", inputs, {"iterations": 2} | settings)
        return PolicyTraining(job, settings_from(PPOSettings, job.settings), ChatFormat.load(policy_dir))

    yield make
    torch.use_deterministic_algorithms(False)


def formats(model: Any) -> set[torch.dtype]:
    """Of the matrices of linear layers."""
    return {module.weight.dtype for module in model.modules() if isinstance(module, nn.Linear)}


def frozen(training: PolicyTraining) -> list[PreferenceModel]:
    assert training.monitor.watcher is not None
    return [training.collector.preference_model, training.monitor.watcher]


def test_by_default_all_is_float32_and_the_first_kl_exactly_zero(training_of) -> None:
    training = training_of()
    assert formats(training.collector.reference.model) == {torch.float32}
    assert all(formats(model.model) == {torch.float32} for model in frozen(training))
    rollout, _ = training._rollout(0)
    assert rollout.kl_nats.abs().max() == 0.0


@pytest.mark.parametrize("critic", ["shared", "separate", "preference_model"])
def test_beside_a_policy_in_float32_the_first_kl_is_within_its_wire(training_of, critic: str) -> None:
    plain, training = training_of(critic=critic), training_of(critic=critic, **BFLOAT16)
    assert formats(training.collector.reference.model) == {torch.bfloat16}
    for model in frozen(training):
        assert formats(model.model.base_model) == {torch.bfloat16}
        assert model.model.score.weight.dtype == torch.float32
    # What learns is what was stored, to the last bit: a critic's trunk too, though its role is rounded.
    for mine, its in ((training.policy.model, plain.policy.model), (training.critic, plain.critic)):
        assert all(torch.equal(one, other) for one, other in zip(mine.parameters(), its.parameters(), strict=True))
    rollout, _ = training._rollout(0)
    assert 0.0 < abs(float(rollout.kl_nats.mean())) <= WatchSettings().max_start_kl_nats
    exact, _ = plain._rollout(0)
    assert torch.equal(rollout.logps, exact.logps)
    assert rollout.scores.tolist() == pytest.approx(exact.scores.tolist(), abs=0.05)


def test_beside_a_policy_in_bfloat16_nothing_is_different(training_of) -> None:
    rollouts = []
    for settings in ({}, BFLOAT16):
        training = training_of(precision="bfloat16", **settings)
        rollouts.append(training._rollout(0)[0])
    plain, halved = rollouts
    assert halved.kl_nats.abs().max() == 0.0
    assert torch.equal(halved.scores, plain.scores)
    assert torch.equal(halved.ref_logps, plain.ref_logps)


def test_a_run_learns_and_trips_no_wire(training_of) -> None:
    training = training_of(**BFLOAT16)
    result = training.run()
    assert result.stopped is None
    assert len(metrics(training.job.out)) == 2
    assert formats(training.policy.model) == {torch.float32}


def test_with_adapters_the_base_that_all_share_stays_as_it_is(training_of) -> None:
    training = training_of(lora_rank=4, **BFLOAT16)
    assert formats(training.collector.reference.model) == formats(training.policy.model) == {torch.float32}
    # Models of their own: these were not trained as adapters of this base.
    assert all(formats(model.model.base_model) == {torch.bfloat16} for model in frozen(training))
    rollout, _ = training._rollout(0)
    assert rollout.kl_nats.abs().max() == 0.0


@pytest.mark.parametrize("name", FAMILIES)
def test_rounded_matrices_give_what_autocast_gives_from_exact_ones(name: str) -> None:
    model = FAMILIES[name]().requires_grad_(False)
    policies = [Policy(each, "bfloat16") for each in (copy.deepcopy(model), model)]
    rounded = policies[0].model
    hold_products_in_bfloat16(rounded)
    [chunk] = reply_chunks([[5, 6, 7]], [[8, 9, 10, 11]], [0], width=4, pad_id=0, chunk_tokens=64)
    with torch.no_grad():
        (states, logits), (its_states, its_logits) = (each.states_and_logits(chunk) for each in policies)
    assert torch.equal(states, its_states)
    assert torch.equal(logits, its_logits)
    tables, heads = (
        [getattr(each, get)().weight for each in (model, rounded)]
        for get in ("get_input_embeddings", "get_output_embeddings")
    )
    assert (tables[0] is heads[0]) == (tables[1] is heads[1])
    size, before = (sum(p.numel() * p.element_size() for p in each.parameters()) for each in (rounded, model))
    assert (size < before) == (name != "gpt-2")  # whose layers are no linear ones, and whose head is the table
