"""Prefix packing against the plain computation of two separate sequences: same scores, same gradients."""

from array import array

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from models.comparison_data import TokenPair
from models.preference import can_pack, end_scores, packed_pair_scores, pair_scores
from models.preference_batches import pack_pairs
from models.preference_loss import preference_loss

PAD = 0
CPU = torch.device("cpu")
# float32 sums in another order: scores are of order 1, gradients up to about 10.
SCORE_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 2e-5

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 1,
    "pad_token_id": PAD,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SMALL, rotary_pct=0.25),
}


def pair(prefix: list[int], better: list[int], worse: list[int]) -> TokenPair:
    return TokenPair("c", "test", "helpful", array("i", prefix), array("i", better), array("i", worse))


PAIRS = [
    pair([5, 6, 7, 8], [9, 10, 11, 2], [12, 2]),
    pair([5], [2], [13, 14, 15, 16, 17, 2]),
    pair([20, 21, 22, 23, 24, 25, 26], [27, 28, 2], [28, 27, 2]),
    pair([30, 31], [32, 33, 34, 35, 36, 37, 38, 39, 2], [32, 2]),
]


def small_model(name: str):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_scores_and_gradients_equal_separate_sequences(name):
    model = small_model(name)
    assert can_pack(model.config)
    gradients, losses = [], []
    for compute in (pair_scores, packed_pair_scores):
        model.zero_grad()
        better, worse = compute(model, PAIRS, PAD, CPU)
        loss = preference_loss(better, worse)
        loss.backward()
        losses.append((better.detach(), worse.detach()))
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    for plain, packed in zip(*losses, strict=True):
        assert torch.allclose(plain, packed, rtol=0, atol=SCORE_TOLERANCE)
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float((gradients[0][key] - gradients[1][key]).abs().max()) for key in gradients[0])
    assert largest < GRADIENT_TOLERANCE
    # The tolerance means something: the gradients themselves are thousands of times larger.
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 1000 * GRADIENT_TOLERANCE


def test_worse_side_cannot_see_the_better_side():
    model = small_model("llama")
    _, worse = packed_pair_scores(model, PAIRS, PAD, CPU)
    changed = [pair(list(p.prefix_ids), [3] * (len(p.better_ids) - 1) + [2], list(p.worse_ids)) for p in PAIRS]
    _, worse_beside_another = packed_pair_scores(model, changed, PAD, CPU)
    assert torch.equal(worse, worse_beside_another)


def test_layout_by_hand():
    # [5 | 9 2 | 8 7 2]: positions 0 | 1 2 | 1 2 3, scores read at 2 and 5.
    packed = pack_pairs([pair([5], [9, 2], [8, 7, 2])], PAD, CPU)
    assert packed.ids.tolist() == [[5, 9, 2, 8, 7, 2]]
    assert packed.positions.tolist() == [[0, 1, 2, 1, 2, 3]]
    assert (packed.better_ends.tolist(), packed.worse_ends.tolist()) == ([2], [5])
    visible = (packed.mask[0, 0] == 0).int().tolist()
    assert visible == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
    ]


def test_swapping_the_sides_negates_the_gap():
    model = small_model("llama")
    better, worse = packed_pair_scores(model, PAIRS, PAD, CPU)
    swapped_better, swapped_worse = packed_pair_scores(model, [p.swapped() for p in PAIRS], PAD, CPU)
    assert torch.allclose(better - worse, swapped_worse - swapped_better, atol=SCORE_TOLERANCE)


def test_padding_and_order_of_a_batch_change_no_score():
    model = small_model("llama")
    sequences = [[5, 6, 2], [7, 8, 9, 10, 11, 2], [12, 2]]
    together = end_scores(model, sequences, PAD, CPU)
    alone = torch.cat([end_scores(model, [ids], PAD, CPU) for ids in sequences])
    assert torch.allclose(together, alone, atol=SCORE_TOLERANCE)
    backwards = end_scores(model, sequences[::-1], PAD, CPU)
    assert torch.allclose(together, backwards.flip(0), atol=SCORE_TOLERANCE)


def test_packing_is_off_where_it_is_not_proven():
    assert not can_pack(MistralConfig(**SMALL))
    assert not can_pack(Qwen2Config(**SMALL, use_sliding_window=True))
