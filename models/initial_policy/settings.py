"""Settings of the jobs that make an initial policy: pretraining, and context distillation in its two steps.

Read next: `pretraining.py`, `distillation_set.py` and `student_training.py`, which follow them.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.runtime.settings import Checked, setting
from models.runtime.training_choices import (
    CHECKPOINT_MEANING,
    CHECKPOINT_RAISED,
    PRECISION,
    CheckpointSettings,
    Precision,
)


@dataclass(frozen=True)
class PretrainSettings(CheckpointSettings):
    """Shape of the small model that is pretrained from scratch, and of its training."""

    hidden_size: int = setting(
        128,
        "Width of the model: a multiple of twice num_heads.",
        unit="numbers per token",
        raised="a better model for enough text; time and memory grow with its square",
        at_least=16,
    )
    num_layers: int = setting(
        4,
        "Layers of the model.",
        unit="layers",
        raised="a better model for enough text; time and memory grow with it",
        at_least=1,
    )
    num_heads: int = setting(
        4,
        "Attention heads of each layer, which share its width.",
        unit="heads",
        raised="more and narrower heads",
        at_least=1,
    )
    vocab_size: int = setting(
        1024,
        "Entries of the byte-level BPE tokenizer, which is trained on the text.",
        unit="tokens",
        raised="shorter sequences, and a larger table to learn from the same text",
        at_least=300,
    )
    max_tokens: int = setting(
        256,
        "Context of the model; longer dialogues are cut into pieces for training.",
        unit="tokens",
        raised="longer conversations fit, and attention costs more",
        at_least=16,
    )
    # At little text the number of steps counts
    # (docs/log/initial-policy.md, "Pretraining the small model: batches, step size, optimiser").
    batch_tokens: int = setting(
        1024,
        "Tokens per optimiser step.",
        unit="tokens",
        raised="fewer and less noisy steps; at little text small steps learn more per token",
        at_least=64,
    )
    learning_rate: float = setting(
        6e-3,
        "Highest learning rate, of AdamW, reached after the warm-up; it falls to 0 along a line. The default is for "
        "the small default shape; a model of twice the width wants about half.",
        unit="per step",
        raised="learns faster, and diverges where it is too high",
        at_least=0,
    )
    weight_decay: float = setting(
        0.1,
        "Weight decay of the matrices.",
        unit="per step, times the learning rate",
        raised="weights are pulled to 0 harder, against overfitting",
        at_least=0,
        new=True,
    )
    warmup_fraction: float = setting(
        0.05,
        "Share of the optimiser steps in which the learning rate rises from 0.",
        unit="share",
        raised="a calmer start, and fewer steps at the full rate",
        at_least=0,
        at_most=1,
        new=True,
    )
    epochs: int = setting(
        1,
        "Passes over the text.",
        unit="passes",
        raised="learns more from little text, and takes longer",
        at_least=1,
    )
    held_out_fraction: float = setting(
        0.02,
        "Share of the dialogues, by a hash of their text, that the loss is measured on and that are never trained on.",
        unit="share",
        raised="a steadier held-out loss, and less text to learn from",
        at_least=0,
        below=1,
        new=True,
    )
    checkpoint_every: int = setting(
        100, "Optimiser steps " + CHECKPOINT_MEANING, unit="steps", raised=CHECKPOINT_RAISED, at_least=1, new=True
    )

    def check(self) -> None:
        super().check()
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size} with num_heads {self.num_heads}; expected a multiple of "
                f"{2 * self.num_heads}, since each head turns pairs of numbers"
            )


@dataclass(frozen=True)
class DistillationSetSettings(Checked):
    """How much text the teacher reads."""

    tokens: int = setting(
        1_000_000,
        "Tokens of text that the teacher reads, its prompt not counted; less where the files hold less. The paper: 350 "
        "million.",
        unit="tokens",
        raised="the student learns more; the teacher's time and 400 bytes of disk a token grow with it",
        at_least=1,
    )
    max_tokens: int = setting(
        256,
        "Longest text, the prompt's tokens not counted; longer ones are cut. Prompt and text must fit the teacher's "
        "context.",
        unit="tokens",
        raised="less is cut off, and memory of the longest grows",
        at_least=2,
    )
    shard_tokens: int = setting(
        16_384,
        "Tokens of a shard of the distillation set, which is held in memory as a whole: about 400 bytes each.",
        unit="tokens",
        raised="fewer and larger files; more memory, and a killed job repeats more",
        at_least=1,
        new=True,
    )
    held_out_texts: int = setting(
        64,
        "Texts for the curve of KL, which are never trained on.",
        unit="texts",
        raised="a steadier curve, and less text to learn from",
        at_least=1,
    )


@dataclass(frozen=True)
class StudentTraining(CheckpointSettings):
    """What an operator says of the student's training: linear decay to zero, no weight decay."""

    learning_rate_multiple: float = setting(
        0.05,
        "Learning rate as a multiple of that of the model's pretraining; it falls to 0 along a line. The paper: 0.05; "
        "a small model on few tokens wants more.",
        unit="factor",
        raised="learns faster, and forgets what it knew where it is too high",
        at_least=0,
    )
    batch_texts: int = setting(
        32,
        "Texts per optimiser step; the paper: 32.",
        unit="texts",
        raised="fewer and less noisy steps",
        at_least=1,
    )
    epochs: int = setting(
        1,
        "Passes over the distillation set.",
        unit="passes",
        raised="learns more from few tokens, and takes longer",
        at_least=1,
    )
    precision: Precision = setting("float32", PRECISION + " The held-out curve is always read in float32.")
    checkpoint_every: int = setting(
        100, "Optimiser steps " + CHECKPOINT_MEANING, unit="steps", raised=CHECKPOINT_RAISED, at_least=1, new=True
    )


@dataclass(frozen=True, kw_only=True)
class DistillSettings(StudentTraining):
    """What the job `distill_student` is told: all that an operator says, and the rate that the multiple is of."""

    reference_learning_rate: float
    """The learning rate that the model was pretrained with."""
