"""Replies cut into chunks of like length, for log-probs, values and learning: padding is never computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.backbone.batches import CHUNK_COST_CPU, chunks_with_little_padding, right_padded
from models.backbone.precision import EXACT, Filling


@dataclass(frozen=True)
class ReplyChunk:
    """Some prompts with their replies as one padded tensor, and where each reply token stands in it.

    The last token of a reply is predicted but never read, so that it is not part of `ids`.
    """

    ids: Tensor  # (b, T) right-padded
    positions: Tensor  # (N,) flat index into (b, T) of the position that predicts each reply token
    targets: Tensor  # (N,) the reply tokens themselves
    places: Tensor  # (N,) flat index of each reply token in the rollout's (B, R) tensors


def reply_chunks(
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    rows: Sequence[int],
    *,
    width: int,
    pad_id: int,
    chunk_tokens: int,
    device: torch.device | str = "cpu",
    fill: Filling = EXACT,
    chunk_cost: int = CHUNK_COST_CPU,
) -> list[ReplyChunk]:
    """The chosen rows in chunks of similar length, each of at most `chunk_tokens` tokens before it is filled up.

    Args:
        prompts, replies: B token lists each; a reply has at least one token.
        rows: which of them to lay out.
        width: R, the number of columns of the rollout's tensors.
        fill: how the rows and columns of a chunk are filled up.
        chunk_cost: tokens that could be computed in the time that one more chunk takes by itself.
    """
    sequences = [[*prompts[row], *replies[row][:-1]] for row in rows]
    chunks = []
    lengths = [len(sequence) for sequence in sequences]
    for members in chunks_with_little_padding(lengths, chunk_tokens, chunk_cost):
        ids, _ = right_padded([sequences[i] for i in members], pad_id, torch.device(device), fill, chunk_tokens)
        positions: list[int] = []
        targets: list[int] = []
        places: list[int] = []
        for line, i in enumerate(members):
            row = rows[i]
            first = line * ids.shape[1] + len(prompts[row]) - 1
            positions.extend(range(first, first + len(replies[row])))
            targets.extend(replies[row])
            places.extend(range(row * width, row * width + len(replies[row])))
        flat = (torch.tensor(values, dtype=torch.long, device=device) for values in (positions, targets, places))
        chunks.append(ReplyChunk(ids, *flat))
    return chunks
