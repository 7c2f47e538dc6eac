"""Activations that are computed again: the same gradients from less memory, wherever layers are gone through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from models.backbone.adapters import sharing
from models.backbone.recomputation import NoSuchLayers, recompute_activations
from models.backbone.trunk import goes_by_hand, states_at
from models.memory.live_bytes import LiveBytes
from models.preference.model import pair_scores, tree_scores
from models.preference.trees import pair_trees
from tests.models.preference.tree_world import BATCH, CONFIGS, CPU, NO_LIMIT, PAD
from tests.models.sampling.tiny_models import gemma3, llama, neox, qwen2, qwen3

TOLERANCE = 1e-6
"""Of the largest gradient of a tensor; the same operations in the same order."""
LAYERS = 8
IDS = torch.randint(2, 64, (4, 40), generator=torch.Generator().manual_seed(3))
POSITIONS = torch.arange(4 * 40).view(4, 40)[:, 20:].flatten()


def gpt2() -> Any:
    """Drops out in training, and goes through its own layers."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64)).eval()


def deep(make: Callable[..., Any], **changes: Any) -> Callable[[], Any]:
    return lambda: make(num_hidden_layers=LAYERS, **changes)


POLICIES = {
    "llama by hand": deep(llama, num_key_value_heads=4),
    "qwen2": deep(qwen2),
    "qwen3 by its modules": deep(qwen3),
    "gemma 3": deep(gemma3, layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2)),
    "gpt-2": gpt2,
}


def learned(model: Any, loss: Callable[[Any], Tensor]) -> tuple[list[Tensor], int]:
    """Gradients of every weight, and the most bytes that lived at once."""
    model.zero_grad()
    with LiveBytes() as live:
        loss(model).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], live.peak


def assert_same_from_less(model: Any, loss: Callable[[Any], Tensor], share: float) -> None:
    kept, most = learned(model, loss)
    other = copy.deepcopy(model)
    recompute_activations(other.base_model)
    found, peak = learned(other, loss)
    assert len(found) == len(kept) > LAYERS
    for mine, its in zip(found, kept, strict=True):
        assert (mine - its).abs().max() <= TOLERANCE * its.abs().max()
    assert peak < share * most


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("training", [False, True])
def test_a_policys_gradients_are_the_same_from_less_memory(name: str, training: bool) -> None:
    model = POLICIES[name]().train(training)
    if name == "llama by hand":
        assert goes_by_hand(model.base_model)

    def loss(model: Any) -> Tensor:
        torch.manual_seed(1)  # of dropout, which GPT-2 has in training
        return states_at(model.base_model, IDS, POSITIONS).square().mean()

    assert_same_from_less(model, loss, 0.5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [True, False])
def test_a_preference_models_gradients_are_the_same_from_less_memory(name: str, packed: bool) -> None:
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])
    config.num_hidden_layers, config.layer_types = LAYERS, ["full_attention"] * LAYERS
    model = AutoModelForSequenceClassification.from_config(config).train()
    pairs = [pair for pair in BATCH for _ in range(4)]

    def loss(model: Any) -> Tensor:
        if packed:
            better, worse = tree_scores(model, pair_trees(pairs, NO_LIMIT), CPU)
        else:
            better, worse = pair_scores(model, pairs, PAD, CPU)
        return torch.nn.functional.softplus(worse - better).mean()

    assert_same_from_less(model, loss, 0.4)


@pytest.mark.parametrize("make", [llama, neox])
def test_without_gradients_and_in_a_shared_copy_nothing_is_different(make: Callable[[], Any]) -> None:
    model = make()
    expected = states_at(model.base_model, IDS, POSITIONS)
    plain = sharing(model)
    recompute_activations(model.base_model)
    with torch.no_grad():
        assert torch.equal(states_at(model.base_model, IDS, POSITIONS), expected)
    assert type(next(iter(plain.base_model.layers))) is not type(next(iter(model.base_model.layers)))
    assert torch.equal(states_at(sharing(model).base_model, IDS, POSITIONS), expected)


def test_a_trunk_without_known_layers_is_refused() -> None:
    with pytest.raises(NoSuchLayers, match="not known for Linear"):
        recompute_activations(torch.nn.Linear(2, 2))
