"""What is counted on tensors without memory is what the same code holds on real ones."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.backbone.recomputation import recompute_activations
from models.memory.live_bytes import LiveBytes
from models.memory.passes import CPU, Texts, Way, Weights, apart, policy_pass, score_pass
from models.model_folders.scalar_head import scorer_class
from models.policy.critic import Critic
from models.policy.model import Policy
from models.policy.reply_chunks import ReplyChunk
from models.preference.model import pair_scores, tree_scores
from models.preference.pairs import TokenPair
from models.preference.trees import pair_trees
from models.runtime.training_choices import Lora

Counted = Callable[..., Any]
SIZE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "vocab_size": 700,
    "pad_token_id": 0,
}
TEXTS = Texts(rows=4, tokens=48, reply_tokens=20)
BY_HAND = ("llama", "mistral", "qwen2")
BY_MODULES = ("qwen3", "gpt_neox", "gemma2", "gemma3_text", "olmo2", "phi", "stablelm")


def config_of(family: str) -> Any:
    more = {"sliding_window": None} if family == "mistral" else {}
    return AutoConfig.for_model(family, **(SIZE | more))


def with_gradients(*modules: torch.nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)


def chunk() -> ReplyChunk:
    ids = torch.randint(1, 700, (TEXTS.rows, TEXTS.tokens))
    first = TEXTS.tokens - TEXTS.reply_tokens
    at = [row * TEXTS.tokens + column for row in range(TEXTS.rows) for column in range(first, TEXTS.tokens)]
    targets = torch.randint(1, 700, (len(at),))
    return ReplyChunk(ids, torch.tensor(at), targets, torch.arange(len(at)))


def policy_held(family: str, *, recompute: bool = False, own_critic: bool = False, logits: int | None = None) -> int:
    """Bytes that a real pass holds at its peak."""
    model = AutoModelForCausalLM.from_config(config_of(family)).eval()
    if recompute:
        recompute_activations(model.base_model)
    policy = Policy(model, "float32", logits)
    critic = Critic("separate" if own_critic else "shared", model.base_model)
    with_gradients(model, critic)
    text = chunk()
    with LiveBytes() as live:
        read = policy.tokens(text)
        (read.logps.sum() + critic(text, read.states).sum()).backward()
    return live.peak


@pytest.mark.parametrize("family", BY_HAND)
@pytest.mark.parametrize("own_critic", [False, True], ids=["shared", "own critic"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_policys_pass_by_hand_is_counted_to_the_byte(
    counted: Counted, family: str, own_critic: bool, recompute: bool
) -> None:
    config = config_of(family)
    found = counted(
        policy_pass,
        config,
        TEXTS,
        Way(recompute=recompute),
        critic="separate" if own_critic else "shared",
        critic_config=config if own_critic else None,
    )
    assert found == pytest.approx(policy_held(family, recompute=recompute, own_critic=own_critic), rel=0.005)


@pytest.mark.parametrize("family", BY_MODULES)
def test_a_policys_pass_by_its_modules_is_counted_within_the_tolerance(counted: Counted, family: str) -> None:
    found = counted(policy_pass, config_of(family), TEXTS, Way(), critic="shared")
    held = policy_held(family)
    # Never less: what is refused for want of memory would have been too much.
    assert held <= found <= 1.15 * held


def test_logits_in_slices_are_counted_so(counted: Counted) -> None:
    config = config_of("llama")
    whole, sliced = (counted(policy_pass, config, TEXTS, Way(), critic="shared", logits_tokens=n) for n in (None, 16))
    assert sliced < whole
    assert sliced == pytest.approx(policy_held("llama", logits=16), rel=0.005)


def test_reading_alone_holds_less(counted: Counted) -> None:
    config = config_of("llama")
    assert counted(policy_pass, config, TEXTS, Way(), learns=False) < 0.7 * counted(policy_pass, config, TEXTS, Way())


def pairs() -> list[TokenPair]:
    shared = TEXTS.tokens - TEXTS.reply_tokens
    sides = [array("i", [first, *range(TEXTS.reply_tokens - 1)]) for first in (1, 2)]
    return [TokenPair("", "", "", array("i", range(shared)), *sides) for _ in range(TEXTS.rows // 2)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_preference_models_pass_is_counted(counted: Counted, family: str, recompute: bool) -> None:
    config = config_of(family)
    config.num_labels, config.use_cache = 1, False
    model = scorer_class(config)(config).eval()
    if recompute:
        recompute_activations(model.base_model)
    with_gradients(model)
    with LiveBytes() as live:
        if family == "gemma2":
            scores = pair_scores(model, pairs(), 0, CPU)
        else:
            scores = tree_scores(model, pair_trees(pairs(), 1000), CPU)
        torch.stack(scores).sum().backward()
    found = counted(score_pass, config_of(family), TEXTS, Way(recompute=recompute))
    assert live.peak <= 1.005 * found
    assert found <= 1.15 * live.peak


def test_weights_are_counted_by_hand(counted: Counted) -> None:
    # A layer: queries and output 64·64 each, keys and values 64·32 each, MLP 3·64·160, two norms of 64.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160
    table = 700 * 64
    weights = counted(Weights.of, AutoConfig.for_model("llama", **SIZE, tie_word_embeddings=False))
    assert weights.trunk == table + 3 * (layer + 2 * 64) + 64
    assert weights.whole == weights.trunk + table
    assert (weights.products, weights.embeddings) == (3 * layer, table)
    tied = counted(Weights.of, AutoConfig.for_model("llama", **SIZE, tie_word_embeddings=True))
    assert tied.whole == tied.trunk == weights.trunk
    # rank · (inputs + outputs) of each layer that is adapted.
    assert weights.adapters(Lora(4, 8.0, ("q_proj", "v_proj"))) == 4 * 3 * ((64 + 64) + (64 + 32))
    everywhere = (64 + 64) * 2 + (64 + 32) * 2 + (64 + 160) * 3
    assert weights.adapters(Lora(4, 8.0)) == 4 * 3 * everywhere


def test_counting_takes_no_memory(counted: Counted) -> None:
    """Of a model of 70 billion parameters too."""
    large = AutoConfig.for_model(
        "llama", hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip
    assert counted(Weights.of, large).whole == 70_553_706_496


def test_a_process_that_goes_on_to_compute_counts_nothing() -> None:
    """It would find what was cached on the way, and that has no memory."""
    with pytest.raises(RuntimeError, match="in a process of its own"):
        Weights.of(config_of("llama"))
    assert apart(Weights.of, config_of("llama")).embeddings == 700 * 64
