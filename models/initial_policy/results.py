"""What the jobs that make an initial policy publish, as types: prepared, pretrained, distilled. No torch.

The report of a cycle reads the course of a distillation with `models/runtime/results.py`; the rest is there to be
looked up with `orchestrator artifact show`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.chat.refusals import RefusedRecords
from models.runtime.results import IF_MEASURED


@dataclass(frozen=True, kw_only=True)
class Doubts:
    """What the preflight found that a person should know, a sentence each; None where it found nothing."""

    doubts: tuple[str, ...] | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True, kw_only=True)
class PreparedResults(Doubts):
    """What `models/jobs/prepare_policy.py` publishes: what was added to the source."""

    added_tokens: tuple[str, ...]
    added_template: bool
    architecture: str
    num_parameters: int
    vocab_size: int
    embedding_rows_before: int
    embedding_rows: int
    roles_are_control_tokens: bool
    """Whether a control token parts the user's text from the reply, which words could not."""
    text_part_of: str | None = field(default=None, metadata=IF_MEASURED)
    """The class of the model that it was taken out of, which also sees or hears."""
    stop_tokens: tuple[str, ...] | None = field(default=None, metadata=IF_MEASURED)
    """What ends a reply, where that is more than the template's end of turn."""


@dataclass(frozen=True, kw_only=True)
class PretrainedResults:
    """What `models/jobs/pretrain.py` publishes. Losses are in nats per token; None where nothing was measured."""

    train_loss: float | None
    """Mean of the last tenth of the steps."""
    held_out_loss: float | None
    num_tokens: int
    """Trained on, all epochs together."""
    num_dialogues: int
    num_held_out: int
    optimiser_steps: int
    num_parameters: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class DistillationSetResults:
    """What `models/jobs/make_distillation_set.py` publishes."""

    prompt_version: str
    prompt_tokens: int
    top_k: int
    vocab_size: int
    shards: tuple[int, ...]
    """Texts in each."""
    held_out: int
    """Texts that are never trained on."""
    num_tokens: int
    num_texts: int
    num_plain: int
    num_dialogues: int
    refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """Texts that the teacher's chat template refuses."""


@dataclass(frozen=True, kw_only=True)
class DistillationPoint:
    """KL from the prompted teacher, nats per token, after so many tokens."""

    tokens: int
    held_out_kl_nats: float
    train_kl_nats: float | None
    """Mean of the steps since the last point; None of the first, which has none before it."""


@dataclass(frozen=True, kw_only=True)
class DistillationCourse:
    """How a student came near its prompted teacher. KLs are nats per token."""

    prompt_version: str
    num_tokens: int
    held_out_kl_before: float
    held_out_kl_after: float
    distillation_curve: tuple[DistillationPoint, ...]


@dataclass(frozen=True, kw_only=True)
class DistilledResults(DistillationCourse):
    """What `models/jobs/distill_student.py` publishes."""

    optimiser_steps: int
    held_out_texts: int
    num_parameters: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class WrittenPromptsResults:
    """What `models/jobs/write_prompts.py` publishes: a prompt set with prompts that a model wrote."""

    num_written: int
    num_written_by_kind: Mapping[str, int]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    num_prompts: int
    """All together."""
    refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """Openings that the chat template refuses, so that they are no examples."""
    settings: Mapping[str, Any]
