"""Sections about comparisons and the preference models that learn from them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.config.base import (
    PRECISION,
    LoraAlpha,
    LoraLayers,
    LoraRank,
    PathText,
    Precision,
    Section,
    checked_lora,
)


class ComparisonsSection(Section):
    """Which comparisons the preference model learns from."""

    held_out_fraction: float = Field(0.05, gt=0, lt=1, description="Share of dialogues held out, by a stable hash")
    min_strength: int = Field(1, ge=1, le=4, description="Weaker comparisons are left out; unknown strength passes")
    label_kinds: list[Literal["human", "model"]] = Field(["human"], description="Model labels are off by default")
    sources: list[str] | None = Field(None, description="Only these sources; all where not given")
    check_against: list[PathText] = Field(
        [],
        description="Evaluation files whose texts are looked for among the comparisons, and reported; none is left out",
    )
    ties: list[Literal["tie", "cant_tell"]] = Field(
        [], description="Undecided comparisons that enter too; they teach only where preference_model.targets is soft"
    )

    def selection(self) -> dict[str, Any]:
        """What decides which comparisons are in the set: all settings but what it is only checked against.

        `ties` only where any enter, so that sets without them keep their bytes from before there was the key.
        """
        return self.model_dump(mode="json", exclude={"check_against"} if self.ties else {"check_against", "ties"})


class SkillSection(Section):
    """Comparisons of an extra skill, mixed into the preference model's training."""

    name: str = Field(min_length=1, max_length=80, description="Its source in the accuracies of the report")
    file: PathText
    template: Literal["as-it-is/1", "summary/1"] = Field(
        "as-it-is/1", description="How a record becomes a dialogue; as it is: any format that can be imported"
    )
    question: Literal["helpful", "harmless"] = "helpful"


class PMPSection(Section):
    """Pre-training of the preference model's trunk on ranked public answers, before the fine-tuning; off by default."""

    files: list[PathText] = Field(
        [], description="JSONL(.gz) of questions with their answers' votes, or ranked trees; none turns it off"
    )
    pairs: Literal["binary", "ranked"] = Field(
        "binary", description="GOOD: A > BAD: A and BAD: B > GOOD: B for each A > B, which transfers better; or A > B"
    )
    held_out_fraction: float = Field(0.05, gt=0, lt=1, description="Share of questions held out, by a stable hash")
    learning_rate: float = Field(1e-3, ge=0, description="The paper: ten times that of the fine-tuning")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="After the warm-up, down to 0")
    batch_pairs: int = Field(32, ge=1, description="Pairs per optimiser step")
    max_tokens: int = Field(1024, ge=16, description="Longer pairs are left out and counted")
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    epochs: int = Field(1, ge=1, description="The paper: one")
    precision: Precision = Field("float32", description=PRECISION)
    threads: int = Field(1, ge=1)


class PreferenceModelSection(Section):
    """Training of the preference model."""

    learning_rate: float = Field(1e-3, ge=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="After the warm-up, down to 0")
    batch_pairs: int = Field(32, ge=1, description="Preference pairs per optimiser step")
    batch_order: Literal["pairs", "dialogues"] = Field(
        "pairs", description="What an epoch shuffles; with dialogues, comparisons of one share its tokens and cost less"
    )
    epochs: int = Field(1, ge=1, description="The paper: one, against overfitting")
    max_tokens: int = Field(1024, ge=16, description="Longer dialogues are left out and counted")
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    harmless_weight: float = Field(1.0, ge=0, description="Loss weight of harmless pairs; the paper's best is 2 to 3")
    targets: Literal["hard", "soft"] = Field(
        "hard", description="hard: the chosen reply is better for certain; soft: with a probability by strength"
    )
    soft_targets: tuple[float, ...] = Field(
        (0.65, 0.80, 0.90, 0.97), description="That probability for strengths 1 to 4, rising; a tie's is 0.5"
    )
    soft_target_unknown: float = Field(1.0, ge=0.5, le=1, description="The same where the strength is unknown")
    lm_coef: float = Field(0.0, ge=0, description="Weight of the language-model loss on the better reply, per token")
    lora_rank: LoraRank = 0
    lora_alpha: LoraAlpha = 16.0
    lora_layers: LoraLayers = ()
    precision: Precision = Field("float32", description=PRECISION)
    skills: list[SkillSection] = Field([], description="Extra comparisons from files, [[preference_model.skills]]")
    shuffle_labels: bool = Field(False, description="Control: train on random labels; accuracy must be at chance")
    twin: Literal["off", "halves", "holdout"] = Field(
        "off",
        description="Whether a second model, trained on comparisons that the first never sees, watches PPO. It gets "
        "half of the training part (`halves`, for the robustness experiment) or 35 % of it (`holdout`)",
    )
    threads: int = Field(1, ge=1)

    @field_validator("soft_targets")
    @classmethod
    def _by_strength(cls, targets: tuple[float, ...]) -> tuple[float, ...]:
        if len(targets) != 4 or list(targets) != sorted(targets) or not 0.5 <= targets[0] <= targets[-1] <= 1:
            raise ValueError("expected four probabilities from 0.5 to 1, for strengths 1 to 4, rising")
        return targets

    @model_validator(mode="after")
    def _layers_with_a_rank(self) -> Self:
        return checked_lora(self)


class OrientationSection(Section):
    """What the preference model must not order the wrong way round: a hand-made set, and no source as a whole."""

    file: PathText | None = Field(
        None,
        description="JSONL of prompt/chosen/rejected of your own, judged at 95 %; takes the place of the shipped set",
    )
    shipped: bool = Field(
        True,
        description="Without a file, 40 English pairs that come with the program are judged at 99.9 %; off: no check",
    )
    contradicting_source: Literal["stop", "report"] = Field(
        "stop", description="A source whose held-out comparisons lie surely below chance: stop, or tell in the report"
    )


class ReferenceSection(Section):
    """The fixed set over which every preference model's offset is measured, so that scores can be shown together."""

    file: PathText | None = Field(None, description="JSONL of prompt/chosen/rejected; both replies are scored")
    pairs: int = Field(
        128, ge=1, description="Without a file: held-out comparisons of the first cycle of this name, by a stable hash"
    )
