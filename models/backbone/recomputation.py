"""Activations of layers that are computed again for the backward pass instead of kept (activation checkpointing).

Of each layer only what goes into it is kept; the backward pass runs a layer's forward once more before its gradients.
Gradients are the same, a step takes about a third more operations, and memory for activations falls from all of every
layer to one input a layer and all of one. Source: Chen et al. 2016, arXiv:1604.06174.

transformers has its own (`gradient_checkpointing_enable`), which works in training mode alone. PPO learns in evaluation
mode, since dropout would make a first ratio other than 1, and `models/backbone/trunk.py` and
`models/preference/tree_states.py` go through the parts of a layer without calling it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

T = TypeVar("T")


class NoSuchLayers(ValueError):
    """A model whose layers are not known, so that nothing of it can be computed again."""


class _Recomputed:
    """Put before the class of a layer: calls of it keep their inputs alone. Shared, copied and moved as any layer."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = super().__call__  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return call(*args, **kwargs)
        return checkpoint(call, *args, use_reentrant=False, **kwargs)


def _marked(kind: Any) -> Any:
    return type(kind.__name__, (_Recomputed, kind), {"__module__": kind.__module__})


def recompute_activations(trunk: Any) -> None:
    """From now on keep no activations of the layers of a trunk (`model.base_model`), but what goes into each.

    Raises:
        NoSuchLayers: its layers are none that transformers would do the same with.
    """
    layers: list[Any] = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise NoSuchLayers(
            f"recompute_activations is not known for {type(trunk).__name__}, which has none of the layers that "
            "transformers marks for it. Leave it off, and lower forward_tokens."
        )
    for layer in layers:
        if not isinstance(layer, _Recomputed):
            layer.__class__ = _marked(type(layer))


def through(layer: Any, function: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
    """`function(*inputs)`, which computes what `layer` would: keeping its inputs alone where the layer does.

    No random number may be drawn in it.
    """
    return recomputed(function, *inputs) if isinstance(layer, _Recomputed) else function(*inputs)


def recomputed(function: Callable[..., T], *inputs: Any) -> T:
    """`function(*inputs)`, computed again for the backward pass; no random number may be drawn in it."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    output: T = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return output
