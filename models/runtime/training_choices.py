"""Choices that the settings of several training jobs share: number format and adapters. No torch.

`models/backbone/precision.py` and `models/backbone/adapters.py` carry them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Lora:
    """Each adapted layer computes W·x + alpha/rank · B·(A·x) with A rank×in and B out×rank, B being 0 at first."""

    rank: int
    alpha: float
    layers: tuple[str, ...] = ()  # last parts of the names of linear layers; none: all of attention and MLP


class LoraSettings(Protocol):
    """What the settings of a training job say about adapters."""

    @property
    def lora_rank(self) -> int: ...
    @property
    def lora_alpha(self) -> float: ...
    @property
    def lora_layers(self) -> tuple[str, ...]: ...


def check_lora(settings: LoraSettings) -> None:
    """Refuse settings that make no adapter.

    Raises:
        ValueError: a number out of range, or layers without a rank.
    """
    if settings.lora_rank < 0:
        raise ValueError(f"lora_rank is {settings.lora_rank}; expected 0 (no adapter) or the rank, 4 to 64 for one.")
    if not 0 < settings.lora_alpha < math.inf:
        raise ValueError(f"lora_alpha is {settings.lora_alpha}; expected a number above 0.")
    if settings.lora_layers and not settings.lora_rank:
        raise ValueError(f"lora_layers is {list(settings.lora_layers)} with lora_rank 0; give a lora_rank, 8 for one.")
