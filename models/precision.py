"""In which number format a model computes; weights, gradients and optimiser state are float32 in either.

With bfloat16 the matrix products and attention run in it (torch's autocast): faster where the hardware multiplies it
faster, and about three digits exact. Residual streams, norms, losses and score and value heads stay float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@contextmanager
def computing_in(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Compute in this format inside the block; gradients of what was computed there follow it by themselves."""
    if precision == "float32":
        yield
        return
    with torch.autocast(torch.device(device).type, dtype=DTYPES[precision]):
        yield


@contextmanager
def computing_exactly(device: torch.device | str) -> Iterator[None]:
    """Compute float32 as float32 inside the block, whatever surrounds it."""
    with torch.autocast(torch.device(device).type, enabled=False):
        yield


def shape_multiple(precision: Precision, device: torch.device | str) -> int:
    """To which multiple of tokens a batch is padded.

    The library that multiplies bfloat16 on CPU compiles a program for every shape that it meets, each some
    milliseconds and half a megabyte; batches of any length would meet hundreds.
    """
    return 32 if precision == "bfloat16" and torch.device(device).type == "cpu" else 1


def note_precision(precision: Precision, device: torch.device | str) -> None:
    """Say on stderr where the chosen format costs speed rather than brings it."""
    if precision == "bfloat16" and (note := slow_bfloat16(device)):
        print(note, file=sys.stderr)


def slow_bfloat16(device: torch.device | str) -> str | None:
    """Why bfloat16 will not be faster here, as a note for people; None where the hardware is made for it."""
    if torch.device(device).type != "cpu" or torch.cpu._is_amx_tile_supported():
        return None
    return "note: this CPU has no AMX; bfloat16 was slower than float32 on such a one (docs/log.md)."
