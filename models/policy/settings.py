"""Settings of PPO: what a policy is trained with, and which combinations make no sense.

Read next: `models/jobs/train_policy.py`, which follows them; docs/explanation/ppo.md says what each of them did.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from models.runtime.training_choices import Precision, check_lora

CriticKind = Literal["shared", "detached", "separate", "preference_model"]
KLEstimator = Literal["k1", "k3", "full"]
KLPlacement = Literal["per_token", "per_reply", "loss"]

ADAM_BETAS = (0.9, 0.95)
# Larger than usual, as in the reference implementations of PPO: steps stay small where gradients are tiny.
ADAM_EPS = 1e-5
MAX_GRADIENT_NORM = 1.0
# The critic's own layers start from nothing while the trunk is already good, and may move faster.
VALUE_HEAD_RATE = 10.0


@dataclass(frozen=True)
class WatchSettings:
    """The tripwires. 0 turns a wire off; numbers that are not finite always stop training.

    "Start" is the run's first rollout, which the initial policy wrote. The defaults are wide: they stop runs that
    are lost, not runs that could be better.
    """

    impossible_kl_errors: float = 4.0  # standard errors by which a KL may lie below 0, in a rollout or over ten
    max_start_kl_nats: float = 0.05  # |KL| of the first rollout, per reply; policy and reference are equal there
    max_first_ratio_error: float = 0.01  # |ratio - 1| of the first minibatch, before any step; else log-probs disagree
    min_entropy_share: float = 0.1  # entropy per token over that of the start
    max_length_factor: float = 5.0  # mean reply length over that of the start, or the other way round
    max_repetition_rise: float = 0.5  # share of repeated 4-grams within replies, above the start's
    max_duplicate_rise: float = 0.5  # share of replies that equal another one, above the start's
    max_truncation_rise: float = 0.6  # share of replies cut off at the cap, above the start's
    max_twin_gap: float = 2.0  # training PM's gain since the start minus the watcher's, in PM units
    max_clip_fraction: float = 0.8  # share of tokens whose gradient was clipped away, mean over a rollout's steps
    max_ratio_error: float = 1.0  # |mean ratio - 1| over a rollout's steps; its expectation is 0
    patience: int = 2  # rollouts in a row that must be beyond a wire; an impossible KL and broken numbers need one

    def __post_init__(self) -> None:
        for name in (each.name for each in dataclasses.fields(self)):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; expected 0 (off) or a number above it.")
        if self.min_entropy_share >= 1:
            raise ValueError(f"min_entropy_share is {self.min_entropy_share:g}; expected a share below 1.")
        if 0 < self.max_length_factor <= 1:
            raise ValueError(f"max_length_factor is {self.max_length_factor:g}; expected a factor above 1, or 0 (off).")
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}; expected at least 1.")


@dataclass(frozen=True)
class PPOSettings:
    """How the policy is trained. Reward = PM score - kl_coef * KL, per reply [60-67 of the paper's reading].

    Not stated in the paper and chosen here: KL is estimated by k1 and its penalty falls on each token, the
    coefficient is fixed, sampling is at temperature 1, the critic is a head on the policy's trunk, advantages are
    whitened over each rollout, and losses are means over reply tokens. docs/explanation/ppo.md has the choices; what
    each of them did is in docs/log/ppo.md, "PPO's open choices, with their noise".
    """

    learning_rate: float = 1e-4
    kl_coef: float = 0.02  # PM units per nat; higher stays closer to the initial policy
    kl_estimator: KLEstimator = "k1"  # log-ratio of the sampled token, its k3 form, or the full vocabulary
    kl_placement: KLPlacement = "per_token"  # of the penalty: each token's reward, the last one's, or the loss
    kl_target_nats: float | None = None  # per reply; where given, kl_coef is only the start and follows this target
    kl_horizon_samples: int = 640  # replies in which a KL 20 % off its target moves the coefficient by 20 %
    clip_ratio: float = 0.2  # how far one rollout may move a token's probability, as a share
    value_clip: float | None = None  # the same for values, in PM units; off by default
    discount: float = 1.0
    gae_lambda: float = 0.95  # 1: no bias from the critic; lower: less noise
    value_coef: float = 0.1  # weight of the critic's loss beside the policy's, which shares the trunk
    critic: CriticKind = "shared"  # where it reads: the policy's states, the same detached, or a trunk of its own
    critic_warmup_iterations: int = 0  # first ones, in which the critic alone learns
    epochs: int = 2  # passes over each rollout (the paper's K)
    iterations: int = 40  # rollouts
    prompts_per_iteration: int = 64  # one reply each
    minibatch_replies: int = 64  # replies per optimiser step
    max_reply_tokens: int = 128  # longer replies are cut off, and scored as they are
    temperature: float = 1.0  # of sampling; log-probs are always at 1
    whiten_advantages: bool = True
    warmup_samples: int = 0  # replies until the full learning rate
    halve_every_samples: int | None = None  # replies after which the learning rate is halved, again and again
    max_kl_nats: float | None = None  # per reply; beyond it training goes back one iteration and stops
    harmless_weight: float = 1.0  # how often a harmless prompt comes for every time a helpful one does
    checkpoint_every: int = 5  # iterations
    snapshots: int = 0  # kept beside the result, at even steps of sqrt(KL); the run needs disk for three times as many
    precision: Precision = "float32"  # of sampling, scoring, reading and learning; weights stay float32
    lora_rank: int = 0  # 0: all weights are trained; otherwise adapters of this rank (docs/explanation/lora.md)
    lora_alpha: float = 16.0  # an adapter's output is scaled by lora_alpha / lora_rank
    lora_layers: tuple[str, ...] = ()  # linear layers with an adapter; none named: all of attention and MLP
    logp_every: int = 10  # iterations between measurements of mean log-p accuracy; 0: never
    logp_pairs: int = 64  # held-out comparisons of each question it is measured on
    watch: WatchSettings = field(default_factory=WatchSettings)  # tripwires; 0 turns one off

    def __post_init__(self) -> None:
        sizes = ("epochs", "prompts_per_iteration", "minibatch_replies", "max_reply_tokens", "checkpoint_every")
        for name in (*sizes, "logp_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        amounts = ("learning_rate", "kl_coef", "value_coef", "harmless_weight", "iterations", "warmup_samples")
        for name in (*amounts, "snapshots", "logp_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        for name in (
            "clip_ratio",
            "temperature",
            "value_clip",
            "max_kl_nats",
            "halve_every_samples",
            "kl_target_nats",
            "kl_horizon_samples",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected a number above 0.")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1.")
        check_lora(self)
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_placement is 'loss' with kl_estimator 'k1', whose gradient is zero on average: nothing would "
                "hold the policy. Choose kl_estimator 'full' or 'k3', or place it 'per_token'."
            )
        if self.kl_target_nats is not None and self.kl_coef == 0:
            raise ValueError("kl_coef is 0 with kl_target_nats given; expected a start above 0, which it can multiply.")
        if not 0 <= self.critic_warmup_iterations < max(1, self.iterations):
            raise ValueError(
                f"critic_warmup_iterations is {self.critic_warmup_iterations} of {self.iterations} iterations; "
                "expected fewer, since the policy learns only in those that are left."
            )

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL term: the exact KL pulls at its own token only through its gradient."""
        return self.kl_placement == "loss" or self.kl_estimator == "full"


def choices(settings: PPOSettings) -> dict[str, Any]:
    """What the paper leaves open and no setting says: it stands beside the settings on the artifact."""
    own_trunk = settings.critic in ("separate", "preference_model")
    return {
        "optimiser": "AdamW, no weight decay",
        "betas": list(ADAM_BETAS),
        "eps": ADAM_EPS,
        "max_gradient_norm": MAX_GRADIENT_NORM,
        "gradients_clipped": "policy and critic each by itself" if own_trunk else "policy and critic together",
        "value_head_rate": f"{VALUE_HEAD_RATE:g} times the learning rate",
        "value_head": "one hidden layer of tanh, its output 0 at first; starts at the mean score of the first replies",
        "losses": "means over the reply tokens of a minibatch",
        "advantages": "over a whole rollout, whitened there" if settings.whiten_advantages else "over a whole rollout",
        "old_log_probs": "read again after sampling, in the layout of the first epoch",
        "score_of_a_cut_off_reply": "as it is, at its last token",
        "entropy_bonus": 0.0,
        "reference": "the initial policy, fixed",
        "dropout": 0.0,
        "dtype": "float32",
    }
