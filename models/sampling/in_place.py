"""Tensors that are made anew but should stay where they lie, since something that was recorded reads them there.

`models/sampling/llama.py` keeps its copies of a model's weights so.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor


def tensors(nested: Any) -> list[Tensor]:
    """All tensors of nested tuples and lists, in their order."""
    if isinstance(nested, Tensor):
        return [nested]
    return [x for part in nested for x in tensors(part)] if isinstance(nested, (tuple, list)) else []


def place(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]:
    """Where and how a tensor lies: what was recorded over one reads another with the same place just as well."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def refreshed(old: Any, new: Any, lent: Set[int], borrowed: Set[int]) -> Any:
    """`new` (nested tuples and lists of tensors), in the memory of `old` wherever both are copies.

    Args:
        lent, borrowed: addresses of the storages that `old` and `new` may be views of; what lies there is not ours to
            write to.
    """
    if isinstance(new, Tensor):
        ours = (
            isinstance(old, Tensor)
            and place(old)[1:] == place(new)[1:]
            and old.untyped_storage().data_ptr() not in lent
            and new.untyped_storage().data_ptr() not in borrowed
        )
        return old.copy_(new) if ours else new
    if not isinstance(new, (tuple, list)) or type(old) is not type(new) or len(old) != len(new):
        return new
    parts = [refreshed(was, becomes, lent, borrowed) for was, becomes in zip(old, new, strict=True)]
    return type(new)(*parts) if hasattr(new, "_fields") else type(new)(parts)
