"""Comparisons that share their beginnings, and tiny preference models of every architecture that packs them."""

from __future__ import annotations

import random
from array import array

import torch
from transformers import AutoModelForSequenceClassification, GPTNeoXConfig, LlamaConfig, Qwen2Config, Qwen3Config

from models.preference.comparison_set import common_prefix_length
from models.preference.model import tree_scores
from models.preference.pairs import TokenPair
from models.preference.trees import pair_trees

PAD = 0
CPU = torch.device("cpu")
# float32 sums in another order: scores are of order 1, gradients up to about 10. (In float64 GPT-NeoX agrees to 3e-15;
# the norms of the others compute in float32 whatever comes in.)
SCORE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 2e-5
HIDDEN = 32
NO_LIMIT = 10_000
SMALL = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "num_labels": 1,
    "pad_token_id": PAD,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "llama, llama3 angles": LlamaConfig(
        **SMALL,
        attention_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16),
    "gpt_neox": GPTNeoXConfig(**SMALL, rotary_pct=0.25),
    "gpt_neox, one after the other": GPTNeoXConfig(**SMALL, rotary_pct=1.0, use_parallel_residual=False),
}


def pair(prefix: list[int], better: list[int], worse: list[int], dialogue: int | None = None) -> TokenPair:
    ids = (array("i", part) for part in (prefix, better, worse))
    return TokenPair("c", "test", "helpful", *ids, dialogue=dialogue)


def sides(better: list[int], worse: list[int], dialogue: int | None = None) -> TokenPair:
    shared = common_prefix_length(better[:-1], worse[:-1])
    return pair(better[:shared], better[shared:], worse[shared:], dialogue)


SINGLES = [
    pair([5, 6, 7, 8], [9, 10, 11, 2], [12, 2]),
    pair([5], [2], [13, 14, 15, 16, 17, 2]),
    pair([20, 21, 22, 23, 24, 25, 26], [27, 28, 2], [28, 27, 2]),
    pair([30, 31], [32, 33, 34, 35, 36, 37, 38, 39, 2], [32, 2]),
]


def dialogue(number: int, turns: int = 4, seed: int = 0) -> list[TokenPair]:
    """Comparisons of every turn of one dialogue; after every second one the worse reply is picked (red team)."""
    generator = random.Random(seed + number)

    def ids(least: int, most: int) -> list[int]:
        return [generator.randrange(3, 40) for _ in range(generator.randint(least, most))]

    path: list[int] = []
    pairs = []
    for turn in range(turns):
        path = path + ids(1, 5)
        better, worse = ids(1, 12), ids(1, 12)
        pairs.append(sides([*path, *better, 2], [*path, *worse, 2], number))
        path = path + (better if turn % 2 == 0 else worse)
    return pairs


BATCH = [*dialogue(1), SINGLES[0], *dialogue(2, turns=3), SINGLES[3], *dialogue(1, turns=2, seed=1)]


def small_model(name: str):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()
    with torch.no_grad():  # norms start at one, which would hide that they are left out
        for label, parameter in model.named_parameters():
            if "norm" in label and "bias" not in label:
                parameter.uniform_(0.5, 1.5)
    return model


def scores_by_tree(model, pairs: list[TokenPair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in the order of the pairs, computed as trees."""
    trees = pair_trees(pairs, NO_LIMIT)
    better, worse = tree_scores(model, trees, CPU)
    back = torch.tensor([i for tree in trees for i in tree.pairs]).argsort()
    return better[back], worse[back]
