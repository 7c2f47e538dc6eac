"""Choices that the settings of several training jobs share: number format, memory, adapters, checkpoints. No torch.

`models/backbone/precision.py` and `models/backbone/adapters.py` carry out number format and adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.runtime.settings import Checked, setting

Precision = Literal["float32", "tf32", "bfloat16"]
HeldPrecision = Literal["float32", "bfloat16"]
"""In what weights can be held that nobody trains."""
PRECISION = (
    "What the matrix products of training are computed in; `bfloat16` is faster where the hardware multiplies it "
    "(GPUs, CPUs with AMX) and exact to three digits. Weights stay float32. `tf32` is float32 that tensor cores of "
    "GPUs round to four digits before they multiply; on a CPU it is float32."
)


@dataclass(frozen=True)
class ForwardSettings(Checked):
    """How much of a batch goes through a model at once. What is learned does not depend on it, but for rounding."""

    forward_tokens: int | None = setting(
        None,
        "Tokens of one forward pass: a batch is cut into chunks of so many, and only one chunk's activations are in "
        "memory; what is learned stays the same but for rounding. A single longer text is a chunk of its own. Not "
        "given: what fills the processor (docs/explanation/memory.md).",
        unit="tokens",
        raised="more memory; faster until the processor is full",
        at_least=1,
        new=True,
    )


@dataclass(frozen=True)
class LogitsSettings(Checked):
    """How much of a vocabulary's logits is in memory at once."""

    logits_tokens: int | None = setting(
        None,
        "Reply tokens whose logits over the vocabulary are in memory at once, computed again for the backward pass; "
        "not given: all of a forward pass, and kept. 1,024 is enough to keep a processor busy.",
        unit="tokens",
        raised="more memory: 8 to 12 bytes a token and word of the vocabulary",
        at_least=1,
        new=True,
    )


@dataclass(frozen=True)
class TrainingMemory(ForwardSettings):
    """What a model that learns keeps in memory."""

    recompute_activations: bool = setting(
        False,
        "Activation checkpointing: of each layer only its input is kept, and the rest computed again for the backward "
        "pass. Gradients stay the same, a step takes about a third longer (docs/explanation/memory.md).",
        new=True,
    )


@dataclass(frozen=True)
class Lora:
    """Each adapted layer computes W·x + alpha/rank · B·(A·x) with A rank×in and B out×rank, B being 0 at first."""

    rank: int
    alpha: float
    layers: tuple[str, ...] = ()  # last parts of the names of linear layers; none: all of attention and MLP


@dataclass(frozen=True)
class LoraSettings(Checked):
    """Adapters in place of whole weights (docs/explanation/lora.md)."""

    lora_rank: int = setting(
        0,
        "Rank of the adapters that are trained on frozen weights; 0 trains all weights. 4 to 64 is usual.",
        unit="dimensions",
        raised="adapters can learn more, and cost more memory and disk",
        at_least=0,
    )
    lora_alpha: float = setting(
        16.0,
        "An adapter's output is scaled by lora_alpha / lora_rank.",
        unit="factor",
        raised="an adapter's steps weigh more, as with a higher learning rate",
        above=0,
    )
    lora_layers: tuple[str, ...] = setting(
        (),
        "Linear layers with an adapter, by the last part of their name (`q_proj`, …); none named: all of attention and "
        "MLP.",
    )

    def check(self) -> None:
        super().check()
        if self.lora_layers and not self.lora_rank:
            raise ValueError(f"lora_layers is {list(self.lora_layers)} with lora_rank 0; give a lora_rank, 8 for one")


@dataclass(frozen=True)
class CheckpointSettings(Checked):
    """How much a training job gives for going on where it was killed."""

    checkpoint_time_share: float = setting(
        0.05,
        "Checkpoints are further apart than checkpoint_every where they would hold training up for more than this "
        "share of its time, beyond the first ten seconds. They are written beside the steps; holding up is copying, "
        "and waiting for the one before. The result is the same whenever they are taken.",
        unit="share",
        raised="a killed job repeats less, and checkpoints of a large model cost more time",
        above=0,
        at_most=1,
        new=True,
    )


CHECKPOINT_MEANING = "between checkpoints, from which a killed job continues with the same numbers."
CHECKPOINT_RAISED = "less time goes into checkpoints, and a killed job repeats more"
