"""In which number format a model computes; what learns is float32 in either: weights, gradients, optimiser state.

With tf32 a GPU rounds what it multiplies to ten bits behind the first, and all else is as in float32. With bfloat16 the
matrix products and attention run in it (torch's autocast): faster where the hardware multiplies it faster, and about
three digits exact. Residual streams, norms, losses and score and value heads stay float32.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from models.runtime.training_choices import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
}


@contextmanager
def computing_in(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Compute in this format inside the block; gradients of what was computed there follow it by themselves.

    Not so those of tf32, which belongs to the whole process: see `multiplying_in`.
    """
    if precision != "bfloat16":
        yield
        return
    with torch.autocast(torch.device(device).type, dtype=DTYPES[precision]):
        yield


@contextmanager
def multiplying_in(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Let a GPU multiply float32 as tf32 inside the block where that is the format, backward passes included."""
    before = torch.get_float32_matmul_precision()
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def computing_exactly(device: torch.device | str) -> Iterator[None]:
    """Compute float32 as float32 inside the block, whatever surrounds it."""
    with torch.autocast(torch.device(device).type, enabled=False):
        yield


def hold_products_in_bfloat16(model: Any) -> None:
    """Round the matrices of all linear layers of a model that learns nothing; only compute it in bfloat16 from then on.

    Autocast rounds them so before every product, so that what is computed in bfloat16 stays the same to the last bit,
    from half the memory. Biases, norms, and tables of embeddings, also where they are the head too, stay float32: the
    residual stream begins with them.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in tables:
            module.weight = nn.Parameter(module.weight.detach().to(torch.bfloat16), requires_grad=False)


class Filling(NamedTuple):
    """To how many rows and columns a batch is filled up with padding; results don't depend on it beyond rounding."""

    rows: Callable[[int], int]
    tokens: Callable[[int], int]


def exactly(count: int) -> int:
    """No padding beyond the longest."""
    return count


def eighths(count: int, unit: int = 1) -> int:
    """`count` up to one of eight sizes between a power of two and the next, all multiples of the unit.

    At most an eighth more, from 8 units on; every power of two from the unit on is such a size, so that texts that fit
    a context of 2,048 still do.
    """
    step = max(unit, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


def thirty_seconds(count: int) -> int:
    """`count` up to the next multiple of 32."""
    return -(-count // 32) * 32


EXACT = Filling(exactly, exactly)
_FEW = Filling(eighths, functools.partial(eighths, unit=16))

# Kinds of devices on which batches come in few shapes.
FEW_SHAPES = ("cuda",)


def filling(precision: Precision, device: torch.device | str) -> Filling:
    """How batches are filled up there.

    The library that multiplies bfloat16 on CPU compiles a program for every shape that it meets, each some
    milliseconds and half a megabyte; batches of any length would meet hundreds. On a GPU memory that was freed is used
    again for what has the same size, and a graph or a compiled program holds for one shape; a twelfth more tokens are
    computed for it where texts have some 90 (benchmarks/launches.py).
    """
    kind = torch.device(device).type
    if kind in FEW_SHAPES:
        return _FEW
    return Filling(exactly, thirty_seconds) if precision == "bfloat16" and kind == "cpu" else EXACT


def note_precision(precision: Precision, device: torch.device | str) -> None:
    """Say on stderr where the chosen format costs speed rather than brings it."""
    if precision == "bfloat16" and (note := slow_bfloat16(device)):
        print(note, file=sys.stderr)
    if precision == "tf32" and torch.device(device).type != "cuda":
        print("note: only GPUs know tf32; here it is float32.", file=sys.stderr)


def slow_bfloat16(device: torch.device | str) -> str | None:
    """Why bfloat16 will not be faster here, as a note for people; None where the hardware is made for it."""
    if torch.device(device).type != "cpu" or torch.cpu._is_amx_tile_supported():
        return None
    return (
        "note: this CPU has no AMX; bfloat16 was slower than float32 on such a one "
        '(docs/log/speed.md, "bfloat16 in both trainers").'
    )
