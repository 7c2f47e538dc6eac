"""Rows of Hugging Face's cache of keys, values and states: taken out, put together with others, cut at the left.

Rows are left-padded, so that the newest token of each is in the last column. A layer of the cache holds per row the
columns that it can still need (all, or a window's), or states without columns (linear attention, convolutions); all of
them are found by their names in `transformers.cache_utils`, and a cache with anything else is left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_COLUMNS = {"keys": -2, "values": -2, "indexer_keys": 1}
"""Tensors with a column a token, rows first: where the columns are."""
_STATES = ("conv_states", "recurrent_states")
"""Dictionaries of tensors without columns, rows first."""
_KNOWN = {
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "DummyLayer",
}


def is_known(cache: Any) -> bool:
    """Whether the functions here see all that the cache holds."""
    layers = getattr(cache, "layers", None)
    return layers is not None and all(type(layer).__name__ in _KNOWN for layer in layers)


def take_rows(cache: Any, rows: Tensor) -> None:
    """Keep these rows of the batch, in this order."""
    for layer in cache.layers:
        _replace(layer, lambda tensor, _: tensor.index_select(0, rows.to(tensor.device)))


def cut_left(cache: Any, columns: int) -> None:
    """Give up the oldest columns, in which no row has a token any more."""
    for layer in cache.layers:
        if (length := _length(layer)) is None:
            continue
        left = length - columns
        _replace(layer, functools.partial(_newest, columns=left))
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = left


def append_rows(cache: Any, others: Any) -> None:
    """Put the rows of another cache of the same model after this one's; shorter rows are padded at the left."""
    for layer, other in zip(cache.layers, others.layers, strict=True):
        appended = dict(_tensors(other))

        def joined(tensor: Tensor, at: int | None, name: str, appended: dict[str, Tensor] = appended) -> Tensor:
            return torch.cat(_padded(tensor, appended[name], at))

        _replace_named(layer, joined)
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = max(layer.cumulative_length, other.cumulative_length)


def _tensors(layer: Any) -> list[tuple[str, Tensor]]:
    """Everything that a layer holds of rows, by name."""
    found = [(name, getattr(layer, name, None)) for name in _COLUMNS]
    for name in _STATES:
        found += [(f"{name} {index}", state) for index, state in getattr(layer, name, {}).items()]
    return [(name, tensor) for name, tensor in found if tensor is not None]


def _replace_named(layer: Any, change: Callable[[Tensor, int | None, str], Tensor]) -> None:
    for name, tensor in _tensors(layer):
        attribute, _, index = name.partition(" ")
        changed = change(tensor, _COLUMNS.get(name), name)
        if index:
            getattr(layer, attribute)[int(index)] = changed
        else:
            setattr(layer, attribute, changed)


def _replace(layer: Any, change: Callable[[Tensor, int | None], Tensor]) -> None:
    _replace_named(layer, lambda tensor, at, _: change(tensor, at))


def _length(layer: Any) -> int | None:
    """Tokens that the longest row has seen; None for a layer without columns."""
    if getattr(layer, "keys", None) is None:
        return None
    return int(getattr(layer, "cumulative_length", layer.keys.shape[-2]))


def _newest(tensor: Tensor, at: int | None, columns: int) -> Tensor:
    """The newest columns, at most so many; all of a tensor without columns."""
    if at is None:
        return tensor
    kept = min(columns, tensor.shape[at])
    return tensor.narrow(at, tensor.shape[at] - kept, kept)


def _padded(first: Tensor, second: Tensor, at: int | None) -> tuple[Tensor, Tensor]:
    """Both with as many columns as the wider one."""
    if at is None:
        return first, second
    width = max(first.shape[at], second.shape[at])
    after = 2 * (first.dim() - 1 - at % first.dim())
    return tuple(F.pad(tensor, (*[0] * after, width - tensor.shape[at], 0)) for tensor in (first, second))  # type: ignore[return-value]
