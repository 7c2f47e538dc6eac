"""Rotary position embeddings of layers by hand: for layer and sampler alike."""

from __future__ import annotations

import torch
from torch import Tensor

# Rotary embeddings whose angles depend on the length of the text cannot be tabulated.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (..., head_dim) states, the two halves of a head being the plane.

    Source: Su et al. 2021, arXiv:2104.09864, in the half-split layout of Hugging Face checkpoints.
    """
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
