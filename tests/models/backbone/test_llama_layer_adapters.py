"""Layers with adapters by hand: right gradients, equal to the base while B is zero, nothing kept for what is frozen."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import adapters
from models.backbone.llama_layer import by_hand
from models.backbone.trunk import states_at
from models.preference.loss import preference_loss
from models.preference.model import pair_scores
from tests.models.preference.tree_world import (
    BATCH,
    GRADIENT_TOLERANCE,
    PAD,
    SCORE_TOLERANCE,
    scores_by_tree,
    small_model,
)
from tests.models.sampling.tiny_models import llama, qwen2

ROUNDING = 1e-5  # float32, sums in another order, relative to the largest
# Less peaked than the sampler's models, with which float32 itself is further from float64 than that.
MILD = {"initializer_range": 0.1}
MODELS = {
    "llama": lambda: llama(**MILD),
    "llama, one key-value head, wide heads": lambda: llama(**MILD, num_key_value_heads=1, head_dim=16),
    "llama, biases everywhere": lambda: llama(**MILD, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: qwen2(**MILD),
}
ALL: tuple[str, ...] = ()
SOME = [ALL, ("q_proj", "v_proj"), ("k_proj", "up_proj"), ("o_proj", "gate_proj"), ("down_proj",)]
RANK = 3


def adapted(model, layers=ALL, *, learned=True):
    """The model with adapters that do something (`learned`), or that were just made."""
    adapters.add_adapter(model, adapters.Lora(RANK, 2.0 * RANK, layers), seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, layer in adapters.adapted_layers(model):
        b = layer.lora_B["default"].weight
        if learned:
            b.data.copy_(torch.randn(b.shape, generator=generator) * 0.3)
    return model


def text():
    """Rows of 3, 11 and 6 tokens, and positions that are never padding."""
    ids = torch.randint(2, 64, (3, 11), generator=torch.Generator().manual_seed(3))
    return ids, torch.tensor([1, 2, 11 + 9, 11 + 10, 22 + 5])


@pytest.mark.parametrize("layers", SOME, ids=lambda layers: "+".join(layers) or "all")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("everything", [False, True], ids=["adapters learn", "all learns"])
def test_states_and_gradients_are_those_of_the_modules(name, layers, everything):
    trunk = adapted(MODELS[name](), layers).base_model
    if everything:
        trunk.requires_grad_(True)
    learned = [p for p in trunk.parameters() if p.requires_grad]
    assert len(learned) == (len(list(trunk.parameters())) if everything else 2 * 2 * (len(layers) or 7))
    assert all(by_hand(layer, torch.zeros(1, 32)) for layer in trunk.layers)
    ids, positions = text()
    weights = torch.randn(5, 32, generator=torch.Generator().manual_seed(4))
    # Of the modules, in float64: by themselves they are as far from it as these are.
    exact = copy.deepcopy(trunk).double()
    expected = states_at(exact, ids, positions, hand=False)
    found = states_at(trunk, ids, positions)
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()
    mine = torch.autograd.grad((found * weights).sum(), learned)
    its = torch.autograd.grad((expected * weights).sum(), [p for p in exact.parameters() if p.requires_grad])
    for found, expected in zip(mine, its, strict=True):
        assert (found - expected).abs().max() <= ROUNDING * expected.abs().max().clamp(min=1)
        assert expected.abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "llama, llama3 angles", "qwen2"])
def test_trees_of_comparisons_have_the_gradients_of_separate_sequences(name):
    model = adapted(small_model(name))
    model.score.requires_grad_(True)
    gradients, scores = [], []
    for compute in (lambda: pair_scores(model, BATCH, PAD, torch.device("cpu")), lambda: scores_by_tree(model, BATCH)):
        model.zero_grad()
        better, worse = compute()
        preference_loss(better, worse).backward()
        scores.append(torch.cat((better, worse)).detach())
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert torch.allclose(*scores, rtol=0, atol=SCORE_TOLERANCE)
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 * 2 * 7 + 1
    assert max(float((gradients[0][key] - gradients[1][key]).abs().max()) for key in gradients[0]) < GRADIENT_TOLERANCE
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 1000 * GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("hand", [True, False])
def test_an_adapter_that_learned_nothing_is_the_base_to_the_last_digit(name, hand):
    base = MODELS[name]()
    fresh, learned = (adapted(adapters.sharing(base), learned=each).base_model for each in (False, True))
    ids, positions = text()
    expected = states_at(base.base_model, ids, positions, hand=hand)
    found = states_at(fresh, ids, positions, hand=hand)
    assert found.requires_grad
    assert torch.equal(found, expected)
    # As it was, too, after another role on the same base has computed and learned.
    states_at(learned, ids, positions, hand=hand).square().sum().backward()
    assert torch.equal(states_at(base.base_model, ids, positions, hand=hand), expected)
    assert not torch.allclose(states_at(learned, ids, positions, hand=hand), expected, atol=0.1)


def kept_by_layers(trunk) -> int:
    """Numbers that the layers keep for the backward, weights apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trunk.parameters()}
    kept: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if tensor.dtype == torch.float32 and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = states_at(trunk, *text())
    total = sum(kept.values())
    del states
    gc.collect()
    return total


def test_what_only_frozen_weights_need_is_not_kept():
    whole, every, some = (llama(num_key_value_heads=4) for _ in range(3))
    whole.model.norm.requires_grad_(False)  # not of a layer
    adapted(every), adapted(some, ("q_proj", "v_proj"))
    kept, by_every, by_some = (kept_by_layers(model.base_model) for model in (whole, every, some))
    assert by_every == kept
    # What goes into the output projections: 33 tokens of 32 numbers in the first layer, 5 in the last.
    assert by_every - by_some == (33 + 5) * 32
    with torch.no_grad():
        assert kept_by_layers(whole.base_model) == kept_by_layers(every.base_model) == 0
    assert kept_by_layers(whole.requires_grad_(False).base_model) == 0


def operations(model, ids, positions) -> tuple[int, int]:
    """Of a forward and of its backward, in products with matrices of the layers and their adapters."""
    # The one in place is not among those that torch counts.
    products = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    counts = []
    with FlopCounterMode(display=False, custom_mapping=products) as counter:
        states = states_at(model.base_model, ids, positions)
    counts.append(counter)
    with FlopCounterMode(display=False, custom_mapping=products) as counter:
        states.sum().backward()
    counts.append(counter)
    forward, backward = (
        sum(count for name, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
        for counter in counts
    )
    return forward, backward


def test_gradients_of_frozen_weights_are_not_computed():
    """One layer, 32 wide and 64 inside, 4 heads of 8 with 2 of keys and values; 11 tokens, 4 of which are read."""
    ids, positions = torch.arange(2, 13)[None], torch.arange(7, 11)
    qkv, out, one = 32 * 32 + 2 * 32 * 16, 32 * 32, 32 * 64  # numbers in the matrices
    plain = 11 * qkv + 4 * (out + 3 * one)
    forward, backward = operations(llama(num_hidden_layers=1), ids, positions)
    assert (forward, backward) == (2 * plain, 2 * 2 * plain)

    # W + c·B·A of queries, keys, values, gate and up; output and down pass through A and B, from 32 and 64 to 32.
    joined_above, joined_below = RANK * 2 * one, RANK * qkv
    passed = 4 * RANK * ((32 + 32) + (64 + 32))
    # Of each adapter x·Aᵀ and dy·B, and from them dA and dB: twice its width and height a token.
    learned = 2 * RANK * (11 * ((32 + 32) + 2 * (32 + 16)) + 4 * ((32 + 32) + 3 * (32 + 64)))
    forward, backward = operations(adapted(llama(num_hidden_layers=1)), ids, positions)
    assert forward == 2 * (plain + joined_above + joined_below + passed)
    # Nothing below the layer learns, so that gradients end at queries, keys and values.
    assert backward == 2 * (4 * (out + 3 * one) + joined_above + passed + learned)
