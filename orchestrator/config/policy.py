"""Sections about training the policy: its prompts, PPO, and what stops PPO."""

from __future__ import annotations

from typing import Literal, Self

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
    """Tripwires of PPO; 0 turns one off. Numbers that are not finite always stop. See docs/guides/when-it-stops.md."""

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
        2.0, ge=0, description="Gain of the training PM minus the watcher's, PM units; needs a watcher"
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
        return checked_lora(self)
