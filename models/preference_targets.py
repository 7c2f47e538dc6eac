"""What a comparison says about the better reply, as the probability that the loss is given.

Read next: `models/preference/loss.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.preference.comparison_set import TokenPair

# The probability, by strength 1 to 4, that another rater would choose the same reply. A choice without strength counts
# as certain, as all choices do with hard targets. Our own choice: the paper takes every comparison as certain [15].
SOFT_TARGETS = (0.65, 0.80, 0.90, 0.97)
SOFT_TARGET_UNKNOWN = 1.0
TIE_TARGET = 0.5


def soft_target(pair: TokenPair, by_strength: Sequence[float], unknown: float) -> float:
    """Probability that the better side is the better one: by strength, `unknown` without one, 0.5 for a tie."""
    if pair.tie is not None:
        return TIE_TARGET
    return unknown if pair.strength is None else by_strength[pair.strength - 1]


def soft_targets(pairs: Sequence[TokenPair], by_strength: Sequence[float], unknown: float) -> Tensor:
    """One target per pair, N, float32."""
    return torch.tensor([soft_target(pair, by_strength, unknown) for pair in pairs], dtype=torch.float32)


def check_targets(by_strength: Sequence[float], unknown: float) -> None:
    """Refuse a mapping that is no mapping from strength to probability.

    Raises:
        ValueError: not four, outside 0.5 to 1, or a weaker strength with a higher probability.
    """
    if len(by_strength) != 4 or list(by_strength) != sorted(by_strength):
        raise ValueError(f"soft_targets are {list(by_strength)}; expected four, for strengths 1 to 4, rising.")
    if not all(0.5 <= target <= 1 for target in (*by_strength, unknown)):
        raise ValueError(
            f"soft_targets are {list(by_strength)} and {unknown} where unknown; expected probabilities from 0.5 to 1."
        )
