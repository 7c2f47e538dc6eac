"""Batches of sequences of uneven length: cut so that little padding is computed, and few shapes where those cost.

Called by training, scoring and evaluation alike; `models/preference/order.py` and the trainers say in which order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from models.backbone.precision import EXACT, Filling
from models.backbone.throughput import product_parameters

# What one more chunk costs, in tokens that could be computed instead. CPU: 4.9 ms beside 73 µs a token, forward and
# backward, whatever the size of the model, since weights and their gradients are read once a chunk
# (docs/log/speed.md, "Speed, second round: a layer's gradients by hand").
CHUNK_COST_CPU = 64
# On a GPU: launching a layer's operations, forward and backward, 98 (benchmarks/launches.py) of about 5 µs, in which
# two fifths of an H200's bfloat16 peak would be computed. Assumed, not measured.
_LAYER_LAUNCH_S = 98 * 5e-6
_GPU_FLOPS = 4e14


def chunks_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices grouped so that a group, padded to its longest member, holds at most `max_tokens` tokens.

    Sorted from long to short, so that neighbours differ little and the largest
    tensors come first: if memory is too small, that shows at once. A single
    sequence longer than `max_tokens` forms a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def chunks_with_little_padding(lengths: Sequence[int], max_tokens: int, chunk_cost: int) -> Iterator[list[int]]:
    """As `chunks_by_length`, cut where padding and chunks together cost least.

    Args:
        chunk_cost: tokens that could be computed in the time that one more chunk takes by itself.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    # Least cost of the sequences from `start` on, and where their first chunk ends.
    costs = [0] * (len(order) + 1)
    ends = list(costs)
    for start in range(len(order) - 1, -1, -1):
        longest = lengths[order[start]]
        most = max(1, max_tokens // max(1, longest))
        costs[start], ends[start] = min(
            (chunk_cost + (end - start) * longest + costs[end], end)
            for end in range(start + 1, min(start + most, len(order)) + 1)
        )
    start = 0
    while start < len(order):
        yield order[start : ends[start]]
        start = ends[start]


def chunk_cost(device: torch.device | str, layers: int, parameters: int) -> int:
    """What one more chunk costs on this device, in tokens that a model of this size could learn from meanwhile.

    Args:
        parameters: those that a token is multiplied with, at six operations each, forward and backward.
    """
    if torch.device(device).type == "cpu":
        return CHUNK_COST_CPU
    return round(layers * _LAYER_LAUNCH_S * _GPU_FLOPS / (6 * parameters))


def chunk_cost_of(model: Any) -> int:
    """`chunk_cost` of a Hugging Face model where it lies."""
    if model.device.type == "cpu":
        return CHUNK_COST_CPU
    return chunk_cost(model.device, model.config.num_hidden_layers, product_parameters(model))


def right_padded(
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device,
    fill: Filling = EXACT,
    max_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(ids, index of the last id): B×T right-padded ids, and the positions at which each sequence ends.

    Args:
        fill: B and T are the number of sequences and the longest one's length, filled up so.
        max_tokens: rows that hold nothing are added only while B·T stays within it.
    """
    width = fill.tokens(max(len(ids) for ids in sequences))
    rows = fill.rows(len(sequences))
    if max_tokens is not None:
        rows = max(len(sequences), min(rows, max_tokens // width))
    ids = torch.full((rows, width), pad_id, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    ends = torch.tensor([len(sequence) - 1 for sequence in sequences], dtype=torch.long)
    return ids.to(device), ends.to(device)
