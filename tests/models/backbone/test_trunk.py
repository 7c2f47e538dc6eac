"""States at chosen positions: those of the Hugging Face forward, with the same gradients."""

import pytest
import torch

from models.backbone.trunk import computes_itself, states_at
from tests.models.sampling.tiny_models import GENERIC, llama, mistral, phi3_long, qwen2, qwen3

ROUNDING = 1e-5  # float32, sums in another order, relative to the largest
OWN = {
    "llama": llama,
    "llama, one key-value head, wide heads": lambda: llama(num_key_value_heads=1, head_dim=16),
    "llama, biases everywhere": lambda: llama(attention_bias=True, mlp_bias=True),
    "qwen2": qwen2,
    "mistral": mistral,
    "qwen3": qwen3,
}


@pytest.mark.parametrize("name", [*OWN, *GENERIC])
def test_states_and_gradients_are_those_of_the_models_own_forward(name):
    model = (OWN | GENERIC)[name]()
    trunk = model.base_model
    assert computes_itself(trunk) == (name in OWN)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 64, (3, 11), generator=generator)
    # Rows of 3, 11 and 6 tokens; the last reply tokens of each, and never padding.
    positions = torch.tensor([1, 2, 11 + 9, 11 + 10, 22 + 5])
    weights = torch.randn(5, 32, generator=generator)

    def gradients(states):
        model.zero_grad()
        (states * weights).sum().backward()
        return [parameter.grad for parameter in trunk.parameters() if parameter.grad is not None]

    expected = trunk(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[positions]
    found = states_at(trunk, ids, positions)
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()
    for mine, its in zip(gradients(found), gradients(expected), strict=True):
        assert (mine - its).abs().max() <= ROUNDING * its.abs().max().clamp(min=1)


def test_a_model_in_training_with_dropout_runs_its_own_forward():
    model = llama(attention_dropout=0.5)
    assert computes_itself(model.base_model)
    assert not computes_itself(model.train().base_model)


def test_a_hook_on_the_trunk_is_called():
    trunk, seen = llama().base_model, []
    trunk.register_forward_hook(lambda _module, _args, output: seen.append(output.last_hidden_state.shape))
    states_at(trunk, torch.tensor([[5, 6, 7]]), torch.tensor([2]))
    assert seen == [(1, 3, 32)]


def test_a_short_row_is_read_as_by_itself_beside_one_beyond_the_border_of_long_rope():
    trunk = phi3_long().base_model
    ids = torch.randint(2, 64, (3, 14), generator=torch.Generator().manual_seed(3))
    # Rows of 5, 14 and 8 tokens, read at their ends and once before.
    positions = torch.tensor([2, 4, 14 + 13, 28 + 7])
    with torch.no_grad():
        found = states_at(trunk, ids, positions)
        alone = [trunk(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]
                 for row, length in enumerate((5, 14, 8))]  # fmt: skip
    expected = torch.stack([alone[0][2], alone[0][4], alone[1][13], alone[2][7]])
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()
    with torch.no_grad():
        together = trunk(input_ids=ids).last_hidden_state.flatten(0, 1)[positions]
    # All of a forward follow its longest row, which is why.
    assert (together - expected).abs().max() > 0.01
