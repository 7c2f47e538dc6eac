"""Gradients worked out by hand, of a layer and of causal attention, against those of autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.backbone.batches import chunks_with_little_padding
from models.backbone.causal_attention import MAX_TOKENS, QUERIES, causal_attention
from models.backbone.llama_layer import by_hand
from models.backbone.trunk import states_at
from tests.models.sampling.tiny_models import llama, qwen2

ROUNDING = 1e-5  # float32, sums in another order, relative to the largest


@pytest.mark.parametrize("tokens", [QUERIES - 1, QUERIES, 2 * QUERIES + 3, MAX_TOKENS + 1])
def test_causal_attention_in_blocks_is_the_fused_one(tokens):
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 3, tokens, 8, generator=generator, requires_grad=True) for _ in range(3)]
    weights = torch.randn(2, tokens, 24, generator=generator)
    expected = F.scaled_dot_product_attention(*heads, is_causal=True, scale=0.5).transpose(1, 2).flatten(2)
    found = causal_attention(*heads, scale=0.5)
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()
    for mine, its in zip(*(torch.autograd.grad((x * weights).sum(), heads) for x in (found, expected)), strict=True):
        assert (mine - its).abs().max() <= ROUNDING * its.abs().max()


@pytest.mark.parametrize("make", [llama, qwen2])
def test_a_long_text_has_the_gradients_of_the_models_own_forward(make):
    model = make(num_key_value_heads=4, max_position_embeddings=256)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(2, 64, (2, 2 * QUERIES + 9), generator=generator)
    positions = torch.randperm(ids.numel(), generator=generator)[:40]
    weights = torch.randn(40, 32, generator=generator)
    parameters = list(model.base_model.parameters())
    assert all(by_hand(layer, torch.zeros(1, 32)) for layer in model.base_model.layers)
    found = states_at(model.base_model, ids, positions)
    expected = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[positions]
    for mine, its in zip(
        *(torch.autograd.grad((x * weights).sum(), parameters) for x in (found, expected)), strict=True
    ):
        assert (mine - its).abs().max() <= ROUNDING * its.abs().max().clamp(min=1)


class Adapter(nn.Linear):
    """A layer that adds something to its product, as adapters do."""

    def forward(self, x):
        return super().forward(x) + 1.0


def adapted(model):
    projection = model.base_model.layers[1].mlp.up_proj
    projection.__class__ = Adapter
    return model


def hooked(model):
    model.base_model.layers[0].self_attn.v_proj.register_forward_hook(lambda _module, _args, output: output + 1.0)
    return model


@pytest.mark.parametrize("change", [adapted, hooked])
def test_a_layer_that_is_more_than_its_weights_is_called(change):
    plain, model = llama().base_model, change(llama()).base_model
    ids, positions = torch.tensor([[5, 6, 7, 8]]), torch.tensor([1, 3])
    assert not all(by_hand(layer, torch.zeros(1, 32)) for layer in model.layers)
    found = states_at(model, ids, positions)
    expected = model(input_ids=ids, use_cache=False).last_hidden_state[0, positions]
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()
    assert (found - states_at(plain, ids, positions)).abs().max() > 0.01


def test_reduced_precision_goes_the_way_of_the_modules():
    layer, states = llama().base_model.layers[0], torch.zeros(1, 32)
    assert by_hand(layer, states)
    assert not by_hand(layer, states.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_hand(layer, states)


@pytest.mark.parametrize(
    ("lengths", "chunk_cost", "expected"),
    [
        # One chunk: 5 + 3·10 = 35. Two: 5 + 10 + 5 + 2·9 = 38. With 1 a chunk 1 + 30 = 31 and 1 + 10 + 1 + 18 = 30.
        ([9, 10, 9], 5, [[1, 0, 2]]),
        ([9, 10, 9], 1, [[1], [0, 2]]),
        # Padded to 10 they are 40 tokens, more than the 30 that a chunk may hold.
        ([10, 10, 10, 10], 100, [[0], [1, 2, 3]]),
        ([50, 1], 100, [[0], [1]]),  # longer than a chunk may be: alone
        ([], 5, []),
    ],
)
def test_chunks_are_cut_where_padding_and_chunks_cost_least(lengths, chunk_cost, expected):
    assert list(chunks_with_little_padding(lengths, 30, chunk_cost)) == expected
