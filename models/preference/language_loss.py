"""The language-model loss on the better reply, which a preference model's training may add (`lm_coef`, default 0).

The predecessor of the paper may have added it; the paper does not say. It keeps the trunk a language model while its
scores are trained. The output layer is the initial policy's, frozen, and is no part of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone.batches import right_padded
from models.backbone.output_layer import check_output_layer
from models.backbone.recomputation import recomputed
from models.backbone.trunk import padded_states
from models.model_folders.loading import load_causal_lm
from models.preference.pairs import TokenPair


def frozen_output_layer(initial: Path, device: torch.device) -> nn.Module:
    """The layer that turns hidden states into logits, a copy of the initial policy's.

    Raises:
        OutputLayerUnknown: its family does more with logits than is known.
    """
    layer = check_output_layer(load_causal_lm(initial, device=device), "preference_model.lm_coef")
    return layer.requires_grad_(False)


def good_sample_loss(
    model: Any,
    output_layer: nn.Module,
    pairs: Sequence[TokenPair],
    pad_id: int,
    device: torch.device,
    logits_tokens: int | None = None,
) -> Tensor:
    """Mean over pairs of the better reply's negative log-likelihood per token, in nats.

    The tokens counted are those after the shared beginning, without the end-of-context id, which no language model
    ever wrote. Pairs whose better reply has no token of its own count 0. A tie has no better reply and counts 0 too.

    Args:
        logits_tokens: of how many tokens logits are computed at once, and once more for the backward pass, so that
            those of a batch are never whole in memory; None: of a whole reply, and kept.
    """
    ids, _ = right_padded([[*pair.prefix_ids, *pair.better_ids] for pair in pairs], pad_id, device)
    hidden = padded_states(model.base_model, ids, [pair.better_tokens for pair in pairs])
    total = hidden.new_zeros(())
    for row, pair in enumerate(pairs):
        # A reply that is all of the sequence has no token before its first.
        first, last = max(1, len(pair.prefix_ids)), pair.better_tokens - 1
        if pair.tie is None and first < last:
            states, targets = hidden[row, first - 1 : last - 1], ids[row, first:last]
            if logits_tokens is None:
                total = total + F.cross_entropy(output_layer(states).float(), targets)
            else:
                parts = zip(states.split(logits_tokens), targets.split(logits_tokens), strict=True)
                total = total + torch.stack([recomputed(_summed_loss, output_layer, *part) for part in parts]).sum() / (
                    last - first
                )
    return total / len(pairs)


def _summed_loss(output_layer: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output_layer(states).float(), targets, reduction="sum")
