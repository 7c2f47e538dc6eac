"""The table by hand, for a model whose sizes are round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig

from models.memory.needs import Judge, needs_of_evaluation, needs_of_policy, needs_of_preference_model
from models.memory.passes import Texts, Way, policy_pass, score_pass
from models.policy.settings import EvaluationSettings, PPOSettings, WatchSettings
from models.preference.settings import PreferenceModelSettings

Counted = Callable[..., Any]
LAYER = 4 * 32 * 32 + 3 * 32 * 64
TABLE = 100 * 32
TRUNK = TABLE + 2 * (LAYER + 2 * 32) + 32
WHOLE = TRUNK + TABLE


def shape(**more: Any) -> Any:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
        "tie_word_embeddings": False,
    }
    return AutoConfig.for_model(more.pop("model_type", "llama"), **(sizes | more))


def bytes_of(table: Any) -> dict[str, int]:
    return {line.what: line.bytes for line in table.lines}


def test_a_preference_model_that_learns(counted: Counted) -> None:
    table = counted(needs_of_preference_model, shape(), PreferenceModelSettings(max_tokens=60, batch_pairs=4), "cpu")
    found = bytes_of(table)
    # Four pairs of 60 tokens, the last 20 of which differ: the batch is less than a forward pass holds.
    assert found.pop("activations, 8 texts of 60 tokens") == counted(score_pass, shape(), Texts(8, 60, 20), Way())
    assert found == {
        "weights": 4 * TRUNK,
        "gradients": 4 * TRUNK,
        "optimiser": 8 * TRUNK,
        "checkpoint being written": 12 * TRUNK,
    }
    assert table.on(host=True) == 12 * TRUNK
    assert table.together == table.on(host=True) + table.on(host=False)


def test_its_pass_is_cut_at_the_budget(counted: Counted) -> None:
    def texts(model_type: str, device: str, **settings: Any) -> str:
        asked = PreferenceModelSettings(max_tokens=60, batch_pairs=400, **settings)
        table = counted(needs_of_preference_model, shape(model_type=model_type), asked, device)
        return next(line.what for line in table.lines if "activations" in line.what)

    # A tree of 80 tokens a pair, half of 2,048 at once; without trees 120, and all of them.
    assert texts("llama", "cpu") == "activations, 24 texts of 60 tokens"
    assert texts("gemma", "cpu") == "activations, 34 texts of 60 tokens"
    assert texts("llama", "cuda") == "activations, 204 texts of 60 tokens"
    assert texts("llama", "cpu", forward_tokens=320) == "activations, 4 texts of 60 tokens"
    # A text that is longer than a pass is a pass of its own.
    assert texts("llama", "cpu", forward_tokens=10) == "activations, 2 texts of 60 tokens"


PPO = {
    "iterations": 30,
    "prompts_per_iteration": 6,
    "minibatch_replies": 3,
    "max_reply_tokens": 10,
    "checkpoint_every": 10,
    "advantage": "gae",
}
JUDGE = [Judge("preference model", shape())]


def policy(counted: Counted, settings: dict[str, Any], judges: Any = JUDGE) -> dict[str, int]:
    return bytes_of(counted(needs_of_policy, shape(), judges, PPOSettings(**(PPO | settings)), "cpu", 30))


def test_ppo_with_everything_held_whole(counted: Counted) -> None:
    found = policy(counted, {})
    texts = Texts(3, 29, 10)
    assert found.pop("activations, 3 texts of 29 tokens") == counted(
        policy_pass, shape(), texts, Way(), critic="shared"
    )
    assert found == {
        "policy": 4 * WHOLE,
        "gradients": 4 * WHOLE,
        "optimiser": 8 * WHOLE,
        "reference": 4 * WHOLE,
        "preference model": 4 * TRUNK,
        # Keys and values of two layers, 32 numbers each.
        "sampler's cache, 6 replies of 30 tokens": 6 * 30 * 2 * 2 * 32 * 4,
        "sampler's logits": 3 * 4 * 6 * 100,
        # Below 50 million parameters it joins products in a copy.
        "sampler's copy of the weights": 4 * 2 * LAYER,
        "last good weights": 12 * WHOLE,
        "checkpoint being written": 12 * WHOLE,
    }


def test_what_settings_add_and_take_away(counted: Counted) -> None:
    usual = policy(counted, {})
    own = policy(counted, {"critic": "separate"})
    assert own["critic's own trunk"] == 16 * TRUNK
    assert own["last good weights"] == own["checkpoint being written"] == 12 * (WHOLE + TRUNK)
    halved = policy(counted, {"frozen_precision": "bfloat16"})
    assert halved["reference"] == 4 * WHOLE - 2 * 2 * LAYER
    assert halved["preference model"] == 4 * TRUNK - 2 * 2 * LAYER
    assert policy(counted, {"watch": WatchSettings(max_recoveries=0)})["last good weights"] == 4 * WHOLE
    assert "checkpoint being written" not in policy(counted, {"checkpoint_every": 30})
    watched = policy(counted, {}, [*JUDGE, Judge("watcher", shape())])
    assert watched == usual | {"watcher": 4 * TRUNK}
    assert (
        policy(counted, {"precision": "bfloat16"})["sampler's cache, 6 replies of 30 tokens"] == 6 * 30 * 2 * 2 * 32 * 2
    )
    no_critic = policy(counted, {"advantage": "rloo", "samples_per_prompt": 2, "prompts_per_iteration": 3})
    assert no_critic.keys() == usual.keys()


def test_adapters_share_one_base(counted: Counted) -> None:
    pytest.importorskip("peft")
    of_a_layer = (32 + 32) * 4 + (32 + 64) * 3
    rank = 4
    learning = rank * 2 * of_a_layer
    found = policy(counted, {"lora_rank": rank}, [Judge("preference model", shape(), 77)])
    assert found["adapters"] == found["gradients"] == 4 * learning
    assert found["optimiser"] == 8 * learning
    assert "reference" not in found
    assert found["preference model, an adapter"] == 77
    assert found["last good weights"] == found["checkpoint being written"] == 12 * learning


def test_an_evaluation_learns_nothing(counted: Counted) -> None:
    asked = EvaluationSettings(max_reply_tokens=10)
    found = bytes_of(counted(needs_of_evaluation, shape(), shape(), JUDGE, asked, "cpu", 5, 30))
    assert found["policy"] == found["initial policy"] == 4 * WHOLE
    assert found["preference model"] == 4 * TRUNK
    assert not {"gradients", "optimiser", "last good weights"} & found.keys()
    assert found["activations, 5 texts of 29 tokens"] == counted(policy_pass, 
        shape(), Texts(5, 29, 10), Way(), learns=False
    )  # fmt: skip


def test_a_layer_with_a_window_keeps_no_more_than_the_window(counted: Counted) -> None:
    sizes = {"model_type": "gemma3_text", "head_dim": 16, "num_key_value_heads": 1, "sliding_window": 8}
    mixed = shape(**sizes, layer_types=["sliding_attention", "full_attention"])
    asked = EvaluationSettings(max_reply_tokens=10)
    found = bytes_of(counted(needs_of_evaluation, mixed, mixed, JUDGE, asked, "cpu", 5, 30))
    assert found["sampler's cache, 5 replies of 30 tokens"] == 5 * (8 + 30) * 2 * 16 * 4
