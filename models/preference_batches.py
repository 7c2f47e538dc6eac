"""Which pairs form a training step, and how they become tensors without wasted padding.

Pure functions of their arguments. Read next: `models/preference.py`, which runs the tensors through a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.comparison_data import TokenPair


def epoch_order(num_pairs: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits the pairs, from the arguments alone, so that a resumed run agrees."""
    # Hashed rather than added, so that seed 0 in epoch 1 is not seed 1 in epoch 0.
    digest = hashlib.sha256(f"pairs/{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return [int(i) for i in torch.randperm(num_pairs, generator=generator)]


def shuffle_labels(pairs: Sequence[TokenPair], seed: int) -> list[TokenPair]:
    """Exchange the sides of half of the pairs, drawn so that the labels carry no information, none about length either.

    Randomised blocks: pairs are sorted by length difference, and of every two
    neighbours a coin picks the one that is exchanged, so that longer replies win
    as often as shorter ones. With a coin per pair the chance surplus of a few
    dozen longer winners would be the strongest signal left: the model learns to
    like (or dislike) length, and on comparisons whose raters like length its
    accuracy lies far from one half (seen: 0.395 where "shorter wins" gives 0.38).

    The coins are hashes of seed and comparison ids; the order of the pairs does not matter.
    """
    blocks = sorted(range(len(pairs)), key=lambda i: (pairs[i].length_difference, pairs[i].id))
    shuffled = list(pairs)
    for start in range(0, len(blocks), 2):
        block = blocks[start : start + 2]
        digest = hashlib.sha256(f"shuffled/{seed}/{pairs[block[0]].id}".encode()).digest()
        picked = digest[0] % 2
        # An odd one out is alone in its block and exchanged only if the coin picks it.
        if picked < len(block):
            shuffled[block[picked]] = pairs[block[picked]].swapped()
    return shuffled


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


def right_padded(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, index of the last id): B×T right-padded ids, and B positions at which each sequence ends."""
    width = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    ends = torch.tensor([len(sequence) - 1 for sequence in sequences], dtype=torch.long)
    return ids.to(device), ends.to(device)


@dataclass(frozen=True)
class PackedPairs:
    """B pairs, one row each: [prefix | better | worse | padding], the prefix computed once for both sides.

    `positions` restart after the prefix at the worse side. `mask` is B×1×T×T and
    additive: 0 where a token may look, the lowest float where it may not (eager
    attention adds a boolean mask as 0 and 1, which is silently wrong).
    """

    ids: Tensor  # B×T
    positions: Tensor  # B×T
    mask: Tensor  # B×1×T×T
    better_ends: Tensor  # B, index of the better side's end-of-context id
    worse_ends: Tensor  # B


def packed_length(pair: TokenPair) -> int:
    """Tokens of the row that `pack_pairs` makes of a pair."""
    return len(pair.prefix_ids) + len(pair.better_ids) + len(pair.worse_ids)


def pack_pairs(pairs: Sequence[TokenPair], pad_id: int, device: torch.device) -> PackedPairs:
    """Lay out pairs one per row, and the mask that hides the better side from the worse."""
    rows = [[*pair.prefix_ids, *pair.better_ids, *pair.worse_ids] for pair in pairs]
    ids, worse_ends = right_padded(rows, pad_id, device)
    prefix = torch.tensor([len(pair.prefix_ids) for pair in pairs], device=device)[:, None]
    better = torch.tensor([len(pair.better_ids) for pair in pairs], device=device)[:, None]

    index = torch.arange(ids.shape[1], device=device)[None, :]
    in_worse = index >= prefix + better  # padding counts as worse side; nothing looks at it
    in_better = (index >= prefix) & ~in_worse
    positions = torch.where(in_worse, index - better, index)
    causal = index[0, :, None] >= index[0, None, :]
    allowed = causal[None] & ~(in_worse[:, :, None] & in_better[:, None, :])
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(allowed.shape, device=device).masked_fill_(~allowed, lowest)[:, None]
    return PackedPairs(ids, positions, mask, (prefix + better - 1)[:, 0], worse_ends)
