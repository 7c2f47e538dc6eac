"""Rotary position embeddings of layers by hand: for layer and sampler alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rotary embeddings whose angles depend on the length of the text cannot be tabulated.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
BY_LENGTH = ("dynamic", "longrope")
"""Those of which the angles of all rows of a forward follow its longest row."""


def depends_on_length(config: Any) -> bool:
    """Whether a model computes a row otherwise in one forward with a longer row than by itself."""
    stated = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # One set of parameters, or one for each type of layer.
    return any(each.get("rope_type") in BY_LENGTH for each in (stated, *stated.values()) if isinstance(each, dict))


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (..., head_dim) states, the two halves of a head being the plane.

    Source: Su et al. 2021, arXiv:2104.09864, in the half-split layout of Hugging Face checkpoints.
    """
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
