"""Which pairs form a training step, and how they become tensors without wasted padding.

Pure functions of their arguments. Read next: `models/preference/model.py`, which runs the tensors through a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from models.preference.pairs import TokenPair

# Twice the four comparisons that a dialogue has on average (arXiv:2204.05862, section 2).
MAX_PIECE_PAIRS = 8


def epoch_order(num_pairs: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits the pairs, from the arguments alone, so that a resumed run agrees."""
    # Hashed rather than added, so that seed 0 in epoch 1 is not seed 1 in epoch 0.
    digest = hashlib.sha256(f"pairs/{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    # Not one by one: going over a tensor makes a tensor of 600 bytes of each number, all at once.
    order: list[int] = torch.randperm(num_pairs, generator=generator).tolist()
    return order


def dialogue_order(dialogues: Sequence[int | None], seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits the pairs when those of a dialogue stand together.

    Dialogues, and pairs that name none, are shuffled as whole pieces; inside a piece the pairs keep their order. A
    dialogue of more than MAX_PIECE_PAIRS comparisons (an opening such as "hi", which many dialogues share) is several
    pieces, so that no batch is about one opening alone.
    """
    pieces: list[list[int]] = []
    open_piece: dict[int, int] = {}
    for i, dialogue in enumerate(dialogues):
        piece = open_piece.get(dialogue) if dialogue is not None else None
        if piece is None or len(pieces[piece]) == MAX_PIECE_PAIRS:
            piece = len(pieces)
            pieces.append([])
            if dialogue is not None:
                open_piece[dialogue] = piece
        pieces[piece].append(i)
    return [i for piece in epoch_order(len(pieces), seed, epoch) for i in pieces[piece]]


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
