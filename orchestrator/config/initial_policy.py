"""The section `[initial_policy]`: a Hugging Face model, or one that is pretrained or distilled here."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from models.initial_policy.settings import DistillationSetSettings, PretrainSettings, StudentTraining
from orchestrator.config.base import STRICT, PathText, Section, Threads, key


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainSection(PretrainSettings, Threads):
    """Pretrain a small initial policy from scratch, where no Hugging Face model is given."""

    files: list[PathText] = key(
        ...,
        "Dialogue or text files: JSONL(.gz) with `messages`, `text` or `chosen`/`rejected`, or .txt(.gz).",
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillSection(DistillationSetSettings, StudentTraining, Threads):
    """Context distillation: the initial policy learns to say without a prompt what its teacher says after it."""

    files: list[PathText] = key(
        ..., "Texts: JSONL(.gz) with `text`, `messages` or `chosen`/`rejected`, or .txt(.gz); half of it plain."
    )
    prompt_file: PathText | None = key(
        None, "Preamble, and examples after Human: and Assistant:, parted by ---; our own where not given."
    )
    teacher: PathText | None = key(
        None, "Hugging Face model with the same tokenizer; the initial policy itself where not given."
    )
    teacher_revision: str | None = key(None, "Revision of the teacher on the hub.")
    reference_learning_rate: float | None = key(
        None,
        "Learning rate of the model's pretraining, which learning_rate_multiple is of; known where it is pretrained "
        "here.",
        unit="per step",
        raised="as a higher learning_rate_multiple",
        above=0,
    )


class InitialPolicySection(Section):
    """The frozen start of every policy, and the KL reference: a Hugging Face model, or one pretrained here."""

    path: PathText | None = key(None, "Folder or hub name of a Hugging Face causal language model.")
    revision: str | None = key(None, "Revision on the hub; pin it, else the name may come to mean another model.")
    pretrain: PretrainSection | None = key(None, "In place of `path`; one of the two must be given.")
    distill: DistillSection | None = key(
        None,
        "Where given, the model above is only the student, and every policy starts from what it has learnt.",
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.path is None) == (self.pretrain is None):
            raise ValueError("give either initial_policy.path or the section [initial_policy.pretrain]")
        if self.distill is not None and self.distill.reference_learning_rate is None and self.pretrain is None:
            raise ValueError(
                "distill.reference_learning_rate is not given; for a model that was pretrained elsewhere, name the "
                "learning rate of its pretraining (published with most models, some 3e-4 at 1B parameters)"
            )
        return self
