"""What steps cost by formula and by count: benchmarks/step_costs.py and benchmarks/launches.py."""

import contextlib
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks import launches, step_costs
from benchmarks.speed_world import Peaks, Size
from benchmarks.step_costs import Cost, decoding, forward, parameters_of, ppo_costs, ppo_launches

TINY = Size(hidden=2, layers=1, heads=1, intermediate=3, vocabulary=5)


def test_a_forward_counts_operations_and_bytes():
    # Weights: queries, keys, values 3 · 4; output 4 and MLP 3 · 2 · 3 = 18 behind the attention; head 10.
    # Two tokens through 12 + 22, one of them not through the last 22, one through the head: 2 · (68 - 22 + 10) = 112
    # operations; attention 2 · 2 · 2² = 16. Numbers: 2 · (12 · 2 + 3 · 3) = 66, logits 2 · 5, weights 34 + 10.
    assert forward(TINY, [2], chosen=1, head=1, number=2) == Cost(128, 2 * 120)
    assert forward(TINY, [2], chosen=1, head=1) == Cost(128, 4 * 120)


def test_decoding_reads_weights_in_every_step_and_the_cache_of_every_row():
    # Replies of 3 and 1 tokens: two steps with one row, after 2 + 1 and 2 + 2 positions. 44 weights.
    # Operations 2 · 2 · 44 + 4 · 2 · 7 = 232; numbers 3 · 44 + 2 · 2 · 7 = 160.
    prompts = forward(TINY, [2, 2], chosen=2, head=2, number=2)
    assert decoding(TINY, [2, 2], [3, 1], number=2) == prompts + Cost(232, 2 * 160)


def test_parameters_are_those_of_the_model():
    from transformers import LlamaForCausalLM

    size = Size(hidden=16, layers=2, heads=2, intermediate=24, vocabulary=32)
    assert parameters_of(size) == sum(p.numel() for p in LlamaForCausalLM(size.config()).parameters())


def test_the_roofline_is_the_longer_of_both():
    peaks = Peaks(flops=10.0, bytes=4.0)
    assert Cost(30, 4).seconds(peaks) == 3.0
    assert Cost(30, 20).seconds(peaks) == 5.0


def test_launches_are_counted_without_views_and_a_norm_as_one():
    states, weight = torch.ones(3, 4, requires_grad=True), torch.ones(4, requires_grad=True)

    def forward():
        normed = F.rms_norm(states.view(4, 3).t().contiguous(), (4,), weight, 1e-6)  # a copy, the norm
        return normed.mul_(2).sum()  # a product in place, a sum

    def backward():
        states.grad = weight.grad = None
        forward().backward()

    assert launches.counted(forward, torch.device("cpu")) == 4
    # A one to begin with, the product's gradient, two for the norm, and a copy that lies as `states` does.
    assert launches.counted(backward, torch.device("cpu")) == 4 + 5


def test_a_norm_that_is_counted_has_the_gradients_of_the_plain_one():
    found = []
    for counts in (False, True):
        states = torch.arange(1.0, 9.0).view(2, 4).requires_grad_()
        weight = torch.tensor([0.5, 1.0, 2.0, 3.0], requires_grad=True)
        with launches.counting() if counts else contextlib.nullcontext():
            (F.rms_norm(states, (4,), weight, 1e-6) ** 2).sum().backward()
        found.append((states.grad, weight.grad))
    assert torch.allclose(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1])
    assert found[0][1].abs().min() > 0.1


@pytest.fixture(scope="module")
def counts():
    return [launches.all_launches(n, "bfloat16", joined=False, device=torch.device("cpu")) for n in (1, 2)]


def test_a_layer_adds_the_same_launches_everywhere_and_none_to_graphs(counts):
    one, two = counts
    each = {name: two[name] - one[name] for name in one}
    assert each["decoding step, plain"] == each["decoding step, fixed shapes"]
    # A norm twice, seven products, two of them added to what they give, rotations, the cache, attention in four.
    assert 20 < each["decoding step, plain"] < 35
    assert each["decoding step, graphs"] == 0
    assert one["decoding step, graphs"] < 10
    assert each["learning from a chunk"] > 2 * each["reading a chunk"]


def test_parts_of_an_iteration_take_the_launches_of_their_steps():
    named = {
        "decoding step, plain": 10,
        "reading a chunk": 20,
        "learning from a chunk": 50,
        "clipping and optimiser": 3,
    }
    found = ppo_launches(named, TINY, replies=4, minibatch=2)
    assert found["sample replies"] == 10 * 127  # the longest of 4 to 128 tokens, the first by the prompt
    assert found["learn: optimiser"] == 3 * 4 * 2
    # Both texts of a minibatch are one chunk: so small a model computes more than they hold during its launches.
    assert found["read the policy"] == 20 * 2
    assert found["learn: forward and backward"] == 50 * 2 * 4
    assert found.keys() == ppo_costs(TINY, 4, 2).keys()


def test_the_table_of_a_data_sheet_needs_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step_costs", "--roofline", "h200", "--device", "cpu", "--replies", "8"])
    assert step_costs.main() == 0
    said = capsys.readouterr().out
    assert "H200 by its data sheet: 989 TFLOP/s, 4.80 TB/s" in said
    assert "with graphs" in said
    assert "measured" not in said
