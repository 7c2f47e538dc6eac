"""What a cycle is told: one typed TOML file. Unknown keys are errors; the whole is stored on the cycle.

Where things run is in `settings.py` and never here. A relative path is taken from the file's folder, and
`$VARIABLES` in paths are expanded.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
import zoneinfo
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from orchestrator.config_errors import explain
from orchestrator.errors import ConfigError


def _expanded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise ValueError("an environment variable that it names is not set")
    return os.path.expanduser(expanded)


PathText = Annotated[str, BeforeValidator(_expanded)]

LoraRank = Annotated[
    int, Field(ge=0, description="Train adapters of this rank on frozen weights (docs/lora.md); 0 trains all weights")
]
LoraAlpha = Annotated[float, Field(gt=0, description="An adapter's output is scaled by lora_alpha / lora_rank")]
LoraLayers = Annotated[
    tuple[str, ...], Field(description="Linear layers with an adapter (q_proj, …); none named: attention and MLP, all")
]
Precision = Literal["float32", "bfloat16"]
PRECISION = "bfloat16: faster where the hardware multiplies it, three digits exact; weights stay float32"


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are never coerced in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _checked_lora(section: Any) -> Any:
    if section.lora_layers and not section.lora_rank:
        raise ValueError(f"lora_layers is {list(section.lora_layers)} with lora_rank 0; give a lora_rank, 8 for one")
    return section


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


class CycleSection(Section):
    """When a cycle may begin."""

    min_comparisons: int = Field(500, ge=0, description="Fresh comparisons below which the cycle ends as skipped")


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
        return _checked_lora(self)


class OrientationSection(Section):
    """What the preference model must not order the wrong way round: a hand-made set, and no source as a whole."""

    file: PathText | None = Field(
        None, description="JSONL of prompt/chosen/rejected; without it the check is skipped and says so"
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


class PromptsSection(Section):
    """What PPO answers in training, and what snapshots are judged on."""

    harmless_weight: float = Field(1.0, ge=0, description="Weight of harmless prompts against helpful ones in the mix")
    train_file: PathText | None = Field(None, description="Extra training prompts, JSONL of {kind, messages}")
    held_out_file: PathText | None = Field(
        None, description="Judge on these prompts in place of those of the held-out dialogues"
    )
    written: int = Field(
        0, ge=0, description="Further training prompts that the initial policy writes after people's; 0: none"
    )
    written_examples: int = Field(10, ge=1, description="People's opening messages it is shown before each")
    written_max_tokens: int = Field(64, ge=4, description="Longer texts are left out, and longer openings not shown")


class WatchSection(Section):
    """Tripwires of PPO; 0 turns one off. Numbers that are not finite always stop. See docs/operations.md."""

    impossible_kl_errors: float = Field(
        4.0, ge=0, description="Standard errors by which a KL may lie below 0, in one rollout or over ten"
    )
    max_start_kl_nats: float = Field(0.05, ge=0, description="|KL| of the first rollout, which must be 0, per reply")
    max_first_ratio_error: float = Field(0.01, ge=0, description="|ratio − 1| of the first minibatch of a rollout")
    min_entropy_share: float = Field(0.1, ge=0, lt=1, description="Entropy per token over that of the first rollout")
    max_length_factor: float = Field(5.0, ge=0, description="Mean reply length over the first's, or the inverse")
    max_repetition_rise: float = Field(
        0.5, ge=0, le=1, description="Share of repeated 4-grams within replies, above the first rollout's"
    )
    max_duplicate_rise: float = Field(
        0.5, ge=0, le=1, description="Share of replies that equal another one, above the first rollout's"
    )
    max_truncation_rise: float = Field(0.6, ge=0, le=1, description="Share of cut-off replies, above the first's")
    max_twin_gap: float = Field(
        2.0, ge=0, description="Gain of the training PM minus the watcher's, score units (nats); needs a watcher"
    )
    max_clip_fraction: float = Field(0.8, ge=0, le=1, description="Share of tokens clipped, over a rollout's steps")
    max_ratio_error: float = Field(1.0, ge=0, description="|mean ratio − 1| over a rollout's steps")
    patience: int = Field(2, ge=1, description="Rollouts in a row beyond a wire; raise it where alarms are noise")

    @field_validator("max_length_factor")
    @classmethod
    def _above_one(cls, factor: float) -> float:
        if 0 < factor <= 1:
            raise ValueError("expected a factor above 1, or 0 to turn the wire off")
        return factor


class PPOSection(Section):
    """PPO against the preference model's score, with a KL penalty to the initial policy."""

    learning_rate: float = Field(1e-4, ge=0)
    kl_coef: float = Field(0.02, ge=0, description="λ of reward = score − λ·KL, per nat; the paper: 0.001")
    kl_estimator: Literal["k1", "k3", "full"] = Field(
        "k1", description="KL from the sampled token's log-ratio, its k3 form, or the full vocabulary (slower, exact)"
    )
    kl_placement: Literal["per_token", "per_reply", "loss"] = Field(
        "per_token", description="Penalty in each token's reward, in the last one's, or in the loss (not with k1)"
    )
    kl_target_nats: float | None = Field(
        None, gt=0, description="KL per reply that kl_coef follows up and down from its start; fixed where not given"
    )
    kl_horizon_samples: int = Field(
        640, ge=1, description="Replies in which a KL 20 % off its target moves kl_coef by 20 %; higher is slower"
    )
    clip_ratio: float = Field(0.2, gt=0)
    discount: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    critic: Literal["shared", "detached", "separate", "preference_model"] = Field(
        "shared",
        description="Value head on the policy's trunk, on its detached states, or on a trunk of its own that starts as "
        "the initial policy's or as the preference model's",
    )
    critic_warmup_iterations: int = Field(0, ge=0, description="First iterations, in which the critic alone learns")
    value_coef: float = Field(0.1, ge=0)
    value_clip: float | None = Field(None, gt=0)
    epochs: int = Field(2, ge=1, description="K: times each batch of replies is used")
    iterations: int = Field(40, ge=1)
    prompts_per_iteration: int = Field(64, ge=1)
    minibatch_replies: int = Field(64, ge=1)
    max_reply_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0)
    whiten_advantages: bool = True
    warmup_samples: int = Field(0, ge=0, description="Linear warm-up of the learning rate, in replies")
    halve_every_samples: int | None = Field(None, ge=1, description="Halve the learning rate every so many replies")
    max_kl_nats: float | None = Field(
        None, gt=0, description="Stop and keep the last good weights beyond this KL per reply"
    )
    snapshots: int = Field(
        0,
        ge=0,
        description="Snapshots of the run beside its result, at even steps of √KL; while it runs they take the disk of "
        "three times as many",
    )
    precision: Precision = Field("float32", description=PRECISION)
    lora_rank: LoraRank = 0
    lora_alpha: LoraAlpha = 16.0
    lora_layers: LoraLayers = ()
    logp_every: int = Field(
        10, ge=0, description="Iterations between measurements of mean log-p accuracy on held-out comparisons; 0: never"
    )
    logp_pairs: int = Field(64, ge=1, description="Held-out comparisons of each question that it is measured on")
    watch: WatchSection = WatchSection()
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 in the loss holds nothing: its gradient is 0 on average; use full or k3")
        if self.kl_target_nats is not None and self.kl_coef == 0:
            raise ValueError("kl_target_nats needs a kl_coef above 0 to start from")
        if self.critic_warmup_iterations >= self.iterations:
            raise ValueError(
                f"critic_warmup_iterations is {self.critic_warmup_iterations} of {self.iterations} iterations; "
                "the policy learns only in those that are left"
            )
        return _checked_lora(self)


class EvaluationSection(Section):
    """How a snapshot is judged before people see it."""

    num_prompts: int = Field(256, ge=1)
    max_reply_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0)
    best_of: int = Field(16, ge=1, description="Best-of-n of the initial policy, as a yardstick; 1 turns it off")
    best_of_prompts: int = Field(256, ge=1, description="Prompts for the yardstick, which costs n replies each")
    best_of_points: tuple[int, ...] = Field(
        (),
        description="Best of these k too, each at most best_of, from the same replies: points for the √KL picture; "
        "the paper: 1, 4, 16, 64",
    )
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _points_within(self) -> Self:
        for k in self.best_of_points:
            if not 1 <= k <= self.best_of:
                raise ValueError(
                    f"best_of_points asks for the best of {k}; expected 1 to best_of = {self.best_of}. Raise best_of "
                    "(and lower best_of_prompts: each costs best_of replies), or leave that point out"
                )
        return self


class GatesSection(Section):
    """What a snapshot must show to go live."""

    min_pm_accuracy: float = Field(0.5, ge=0, le=1, description="The PM's held-out accuracy interval must lie above it")
    min_score_gain: float = Field(
        0.0, description="Gain of the held-out score over the initial policy, lower bound above it"
    )
    max_kl_nats: float = Field(50.0, gt=0, description="KL per reply to the initial policy; must also be above 0")
    max_duplicate_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of replies that equal another prompt's, word for word; off where not given",
    )
    max_refusal_share: float | None = Field(
        None, ge=0, le=1, description="Share of ordinary requests refused, by a list of phrases; off where not given"
    )


class OodSection(Section):
    """A detector of requests far from what the policy was trained to answer, for the policy server's gate."""

    detector: Literal["relative", "mahalanobis", "exposure"] = Field(
        "relative", description="Distance less that of independent numbers; plain distance; or learnt from examples"
    )
    layer: int | None = Field(
        None, ge=0, description="Hidden layer to read, 0 the embeddings; chosen with the examples, or by depth"
    )
    home: Literal["helpful", "harmless"] = Field("helpful", description="Kind of the prompts that are not far")
    examples_file: PathText | None = Field(
        None, description="Prompts that should be found: .txt, one a line, or JSONL of {prompt} or {messages}"
    )
    quantile: float = Field(0.99, gt=0, le=1, description="Share of unseen prompts of home within the threshold")
    max_prompts: int = Field(4096, ge=8, description="Prompts of home to read, drawn by hash")
    l2: float = Field(1e-3, gt=0, description="Penalty on the weights of `exposure`; raise it for few examples")
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _examples_to_learn_from(self) -> Self:
        if self.detector == "exposure" and self.examples_file is None:
            raise ValueError("detector 'exposure' learns from examples; give examples_file, or take another detector")
        return self


class ServingSection(Section):
    """How live policies answer raters. Equal for every contestant."""

    max_reply_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1, description="1: raters prefer policies sampled as they were trained")


class ScheduleSection(Section):
    """When `orchestrator register` lets the cycle run by itself."""

    cron: str = Field("0 6 * * 1", description="Weekly, Monday at 6")
    timezone: str = Field("UTC", description="IANA time zone of the schedule")

    @field_validator("cron")
    @classmethod
    def _comes_round(cls, expression: str) -> str:
        # Seconds, as a sixth field, stand last for Prefect and first for cronsim.
        reason = "it has another number of fields"
        if len(expression.split()) == 5:
            try:
                next(CronSim(expression, datetime(2000, 1, 1)))
                return expression
            except StopIteration:
                reason = "such a day never comes"
            except CronSimError as error:
                reason = str(error).lower()
        raise ValueError(
            f"expected a cron expression of five fields (minute, hour, day, month, weekday), such as 0 6 * * 1 for "
            f"Mondays at six; {reason}"
        )

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            near = difflib.get_close_matches(name, zoneinfo.available_timezones(), 1)
            raise ValueError(
                "expected an IANA time zone, such as UTC or Europe/Berlin"
                + (f"; did you mean {near[0]}?" if near else "")
            ) from None
        return name


class CycleConfig(Section):
    """Everything a cycle is told."""

    name: str = Field("default", min_length=1, max_length=80)
    seed: int = Field(0, ge=0, lt=2**31)
    initial_policy: InitialPolicySection
    cycle: CycleSection = CycleSection()
    comparisons: ComparisonsSection = ComparisonsSection()
    pmp: PMPSection = PMPSection()
    preference_model: PreferenceModelSection = PreferenceModelSection()
    reference: ReferenceSection = ReferenceSection()
    orientation: OrientationSection = OrientationSection()
    prompts: PromptsSection = PromptsSection()
    ppo: PPOSection = PPOSection()
    evaluation: EvaluationSection = EvaluationSection()
    gates: GatesSection = GatesSection()
    ood: OodSection | None = None
    """Where given, each cycle fits a detector."""
    serving: ServingSection = ServingSection()
    schedule: ScheduleSection = ScheduleSection()


C = TypeVar("C", bound=Section)


def load_config(
    file: Path,
    overrides: list[str] | None = None,
    model: type[C] = CycleConfig,  # type: ignore[assignment]
) -> C:
    """Read a TOML file and apply `section.key=value` overrides (values as TOML, bare words as text).

    Raises:
        ConfigError: file missing, not TOML, unknown key, wrong type; the message names file, key and value.
    """
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"No configuration file at {file}. Begin with a copy of examples/local.toml.") from None
    except OSError as error:
        raise ConfigError(f"{file} can't be read ({error.strerror}); expected a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}.") from None
    for override in overrides or []:
        _override(raw, override)
    return parse_config(_absolute(raw, file.parent.absolute()), str(file), model)


def parse_config(
    raw: dict[str, Any],
    origin: str = "the configuration",
    model: type[C] = CycleConfig,  # type: ignore[assignment]
) -> C:
    """Validate a mapping, e.g. the one stored on a cycle; errors name key, value and what was expected."""
    try:
        # By way of JSON, which has no types beyond those of TOML: strict there means that "40" is no number and true no
        # 1.0, while tables are still sections and arrays tuples.
        return model.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"In {origin}: {explain(error, model)}.") from None


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: expected section.key=value, e.g. ppo.learning_rate=0.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    target = raw
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {part} is a value and has no keys below it.")
    target[parts[-1]] = value


PATH_KEYS = {"path", "file", "train_file", "held_out_file", "examples_file", "prompt_file", "teacher"}


def _absolute(node: Any, base: Path, key: str = "") -> Any:
    """Make the file names in a raw configuration absolute; a model path that is no folder stays a hub name."""
    if isinstance(node, dict):
        return {name: _absolute(value, base, name) for name, value in node.items()}
    if isinstance(node, list) and key in ("files", "check_against"):
        return [_absolute(value, base, "file") for value in node]
    if isinstance(node, list):
        return [_absolute(value, base) if isinstance(value, dict) else value for value in node]
    if isinstance(node, str) and key in PATH_KEYS and node:
        expanded = Path(os.path.expanduser(os.path.expandvars(node)))
        if key in ("path", "teacher") and not (base / expanded).exists():
            return node
        return node if "$" in str(expanded) else str(base / expanded)
    return node
