"""The section `[initial_policy]`: a Hugging Face model, or one that is pretrained or distilled here."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from orchestrator.config.base import PRECISION, PathText, Precision, Section


class PretrainSection(Section):
    """Pretrain a small initial policy from scratch, where no Hugging Face model is given."""

    files: list[PathText] = Field(
        description="Dialogue or text files: JSONL(.gz) with `messages`, `text` or `chosen`/`rejected`, or .txt(.gz)"
    )
    hidden_size: int = Field(128, ge=16, description="Width; a multiple of twice num_heads")
    num_layers: int = Field(4, ge=1)
    num_heads: int = Field(4, ge=1)
    vocab_size: int = Field(1024, ge=300, description="Entries of the byte-level BPE tokenizer trained on the text")
    max_tokens: int = Field(256, ge=16, description="Context, tokens")
    batch_tokens: int = Field(1024, ge=64, description="Tokens per optimiser step; small steps learn more per token")
    learning_rate: float = Field(6e-3, ge=0)
    epochs: int = Field(1, ge=1)
    threads: int = Field(1, ge=1, description="CPU threads; another number gives other last digits")

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size} with num_heads {self.num_heads}; expected a multiple of "
                f"{2 * self.num_heads}, since each head turns pairs of numbers"
            )
        return self


class DistillSection(Section):
    """Context distillation: the initial policy learns to say without a prompt what its teacher says after it."""

    files: list[PathText] = Field(
        description="Texts: JSONL(.gz) with `text`, `messages` or `chosen`/`rejected`, or .txt(.gz); half of it plain"
    )
    prompt_file: PathText | None = Field(
        None,
        description="Preamble, and examples after Human: and Assistant:, parted by ---; by default our own",
    )
    teacher: PathText | None = Field(
        None, description="Hugging Face model with the same tokenizer; the initial policy itself where not given"
    )
    teacher_revision: str | None = Field(None, description="Revision of the teacher on the hub")
    tokens: int = Field(1_000_000, ge=1, description="Tokens of text that the teacher reads; the paper: 350 million")
    max_tokens: int = Field(256, ge=2, description="Tokens of one text, beside the prompt's; longer ones are cut")
    held_out_texts: int = Field(64, ge=1, description="Texts for the KL curve, never trained on")
    learning_rate_multiple: float = Field(0.05, ge=0, description="Of the pretraining's learning rate; decays to 0")
    reference_learning_rate: float | None = Field(
        None, gt=0, description="The pretraining's learning rate; known where the model is pretrained here"
    )
    batch_texts: int = Field(32, ge=1, description="Texts per optimiser step")
    epochs: int = Field(1, ge=1)
    precision: Precision = Field("float32", description=PRECISION)
    threads: int = Field(1, ge=1)


class InitialPolicySection(Section):
    """The frozen start of every policy, and the KL reference: a Hugging Face model, or one pretrained here."""

    path: PathText | None = Field(None, description="Folder or hub name of a Hugging Face causal language model")
    revision: str | None = Field(
        None, description="Revision on the hub; pin it, else the name may come to mean another model"
    )
    pretrain: PretrainSection | None = None
    distill: DistillSection | None = None
    """Where given, the model above is only the student, and the policy starts from what it has learnt."""

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
