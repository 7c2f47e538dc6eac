"""How a preference model is trained: the settings of its job, and what none of them says.

Read next: `models/jobs/train_preference_model.py`, which follows them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.preference.twins import Part, Twin
from models.runtime.training_choices import Precision, check_lora

ADAM_BETAS = (0.9, 0.98)
ADAM_EPS = 1e-8
MAX_GRADIENT_NORM = 1.0

# The probability, by strength 1 to 4, that another rater would choose the same reply. A choice without strength counts
# as certain, as all choices do with hard targets. Our own choice: the paper takes every comparison as certain [15].
SOFT_TARGETS = (0.65, 0.80, 0.90, 0.97)
SOFT_TARGET_UNKNOWN = 1.0


@dataclass(frozen=True)
class PreferenceModelSettings:
    """How the preference model is trained. One epoch is the paper's choice, against overfitting."""

    learning_rate: float = 1e-3
    batch_pairs: int = 32
    batch_order: Literal["pairs", "dialogues"] = "pairs"  # what is shuffled; dialogues share more tokens in a batch
    epochs: int = 1
    max_tokens: int = 1024
    warmup_fraction: float = 0.05
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = 0.0
    harmless_weight: float = 1.0
    targets: Literal["hard", "soft"] = "hard"
    soft_targets: tuple[float, ...] = SOFT_TARGETS  # by strength 1 to 4
    soft_target_unknown: float = SOFT_TARGET_UNKNOWN
    lm_coef: float = 0.0
    lora_rank: int = 0  # 0: all weights are trained; otherwise adapters of this rank and the head
    lora_alpha: float = 16.0  # an adapter's output is scaled by lora_alpha / lora_rank
    lora_layers: tuple[str, ...] = ()  # linear layers with an adapter; none named: all of attention and MLP
    precision: Precision = "float32"  # of training; weights stay float32, and the report is computed in it
    shuffle_labels: bool = False
    twin: Twin = "off"  # whether the training part is shared between this model and a watcher
    part: Part = "production"  # which of the two this is
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("batch_pairs", "epochs", "max_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("learning_rate", "weight_decay", "harmless_weight", "lm_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}; expected a share of the steps, 0 to 1.")
        check_lora(self)
        check_targets(self.soft_targets, self.soft_target_unknown)
        if self.part == "watcher" and self.twin == "off":
            raise ValueError("part is 'watcher' and twin is 'off'; a watcher needs twin = 'halves' or 'holdout'.")


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
