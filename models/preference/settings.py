"""How a preference model is trained: the settings of its job, and what none of them says.

Read next: `models/jobs/train_preference_model.py`, which follows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.runtime.settings import SettingError, setting
from models.runtime.training_choices import (
    CHECKPOINT_MEANING,
    CHECKPOINT_RAISED,
    PRECISION,
    CheckpointSettings,
    LogitsSettings,
    LoraSettings,
    Precision,
    TrainingMemory,
)

Twin = Literal["off", "halves", "holdout"]
Part = Literal["production", "watcher"]

ADAM_BETAS = (0.9, 0.98)
ADAM_EPS = 1e-8
MAX_GRADIENT_NORM = 1.0

# The probability, by strength 1 to 4, that another rater would choose the same reply. A choice without strength counts
# as certain, as all choices do with hard targets. Our own choice: the paper takes every comparison as certain [15].
SOFT_TARGETS = (0.65, 0.80, 0.90, 0.97)
SOFT_TARGET_UNKNOWN = 1.0


@dataclass(frozen=True)
class RankingSettings(TrainingMemory, CheckpointSettings):
    """What training on people's comparisons and pre-training on ranked answers have in common."""

    learning_rate: float = setting(
        1e-3,
        "Highest learning rate, of AdamW, reached after the warm-up. The default is for models of a few million "
        "weights; a published one gets 2e-5 to 5e-6 by its size, with adapters ten times that. The paper pre-trains at "
        "ten times the rate of the fine-tuning.",
        unit="per step",
        raised="learns faster, and forgets the trunk's language or diverges where it is too high",
        at_least=0,
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = setting(
        "linear",
        "How the learning rate falls after the warm-up: not at all, or to 0 along a line or a cosine. The paper: "
        "constant.",
    )
    warmup_fraction: float = setting(
        0.05,
        "Share of the optimiser steps in which the learning rate rises from 0.",
        unit="share",
        raised="a calmer start, and fewer steps at the full rate",
        at_least=0,
        at_most=1,
    )
    batch_pairs: int = setting(
        32,
        "Preference pairs per optimiser step.",
        unit="pairs",
        raised="fewer and less noisy steps; memory does not grow with it",
        at_least=1,
    )
    epochs: int = setting(
        1,
        "Passes over the training pairs; the paper's one guards against overfitting.",
        unit="passes",
        raised="takes longer, fits small sets better and learns larger ones by heart",
        at_least=1,
    )
    max_tokens: int = setting(
        1024,
        "Longest sequence, prompt and reply together; pairs with a longer one are left out and counted, never cut.",
        unit="tokens",
        raised="fewer pairs are left out; memory and time of the longest ones grow",
        at_least=16,
    )
    precision: Precision = setting("float32", PRECISION + " The report is always computed in float32.")
    checkpoint_every: int = setting(
        50,
        "Optimiser steps " + CHECKPOINT_MEANING,
        unit="steps",
        raised=CHECKPOINT_RAISED,
        at_least=1,
        new=True,
    )


@dataclass(frozen=True)
class ComparisonTraining(RankingSettings, LogitsSettings):
    """What an operator says of the training on comparisons."""

    batch_order: Literal["pairs", "dialogues"] = setting(
        "pairs",
        "What an epoch shuffles. With `dialogues` the comparisons of one dialogue share a batch, where its tokens are "
        "computed once: 1.6 times as fast at four compared turns each, and less accurate on a few hundred comparisons.",
    )
    weight_decay: float = setting(
        0.0,
        "Weight decay of AdamW.",
        unit="per step, times the learning rate",
        raised="weights are pulled to 0 harder, against overfitting",
        at_least=0,
    )
    harmless_weight: float = setting(
        1.0,
        "Weight of a harmless pair's loss against a helpful one's; the paper's best is 2 to 3.",
        unit="factor",
        raised="orders harmless pairs better, at the cost of helpful ones",
        at_least=0,
    )
    targets: Literal["hard", "soft"] = setting(
        "hard",
        "`hard`: the chosen reply is better for certain, as in the paper. `soft`: with a probability by its strength.",
    )
    soft_targets: tuple[float, ...] = setting(
        SOFT_TARGETS,
        "With soft targets: the probability that the chosen reply is better, for strengths 1 to 4, rising; a tie's is "
        "0.5.",
        unit="probability",
        raised="comparisons of that strength count as more certain, and their scores are driven further apart",
    )
    soft_target_unknown: float = setting(
        SOFT_TARGET_UNKNOWN,
        "With soft targets: the same where the strength is unknown.",
        unit="probability",
        raised="comparisons without a strength count as more certain",
        at_least=0.5,
        at_most=1,
    )
    lm_coef: float = setting(
        0.0,
        "Weight of the language-model loss on the better reply beside the ranking loss; 0: none.",
        unit="nats of the ranking loss per nat and token",
        raised="the trunk keeps more of its language, and ranks less well where it is too high",
        at_least=0,
    )
    shuffle_labels: bool = setting(
        False,
        "A control: train on labels drawn at random. Held-out accuracy must then be at chance.",
    )
    twin: Twin = setting(
        "off",
        "Whether a second preference model, the watcher, is trained on comparisons that the first never sees, and "
        "watches PPO. It gets half of the training part (`halves`, for the robustness experiment) or 35 % of it "
        "(`holdout`).",
    )

    def check(self) -> None:
        super().check()
        check_targets(self.soft_targets, self.soft_target_unknown)


@dataclass(frozen=True)
class PreferenceModelSettings(ComparisonTraining, LoraSettings):
    """What the job is told: all that an operator says, and which of the twins this is."""

    part: Part = setting("production", "Which of the twins is trained: the one that PPO follows, or the watcher.")

    def check(self) -> None:
        super().check()
        if self.part == "watcher" and self.twin == "off":
            raise ValueError("part is 'watcher' and twin is 'off'; a watcher needs twin = 'halves' or 'holdout'")


def check_targets(by_strength: Sequence[float], unknown: float) -> None:
    """Refuse a mapping that is no mapping from strength to probability.

    Raises:
        SettingError: not four, outside 0.5 to 1, or a weaker strength with a higher probability.
    """
    rising = len(by_strength) == 4 and list(by_strength) == sorted(by_strength)
    if not rising or not all(0.5 <= target <= 1 for target in by_strength):
        expected = "four probabilities from 0.5 to 1, for strengths 1 to 4, rising"
        raise SettingError("soft_targets", list(by_strength), expected)
    if not 0.5 <= unknown <= 1:
        raise SettingError("soft_target_unknown", unknown, "at least 0.5 and at most 1")
