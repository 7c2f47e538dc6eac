"""Settings of the policy's jobs: PPO and its tripwires, prompts that a policy writes, replies that are judged.

Read next: `models/jobs/train_policy.py`, which follows most of them; docs/explanation/ppo.md says what each of them
does. Which combinations make no sense stands in the `check` of each class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from models.runtime.settings import Checked, SettingError, setting
from models.runtime.training_choices import (
    CHECKPOINT_MEANING,
    CHECKPOINT_RAISED,
    PRECISION,
    CheckpointSettings,
    ForwardSettings,
    HeldPrecision,
    LogitsSettings,
    LoraSettings,
    Precision,
    TrainingMemory,
)

CriticKind = Literal["shared", "detached", "separate", "preference_model"]
KLEstimator = Literal["k1", "k3", "full"]
KLPlacement = Literal["per_token", "per_reply", "loss"]
AdvantageKind = Literal["gae", "rloo"]

ADAM_BETAS = (0.9, 0.95)
# Larger than usual, as in the reference implementations of PPO: steps stay small where gradients are tiny.
ADAM_EPS = 1e-5
MAX_GRADIENT_NORM = 1.0
# The critic's own layers start from nothing while the trunk is already good, and may move faster.
VALUE_HEAD_RATE = 10.0
# What the preference model reads behind a reply: the ends of the turn and of the context.
CLOSING_IDS = 2

_WIRE = "stops later: a run may go further before the wire trips; 0 turns it off"
_LONGER_REPLIES = "longer replies fit, and sampling, scoring and learning take more time and memory"


@dataclass(frozen=True)
class WatchSettings(Checked):
    """The tripwires of PPO. 0 turns a wire off; numbers that are not finite always stop training.

    "Start" is the run's first rollout, which the initial policy wrote. The defaults are wide: they stop runs that
    are lost, not runs that could be better.
    """

    impossible_kl_errors: float = setting(
        4.0,
        "How far a KL may lie below 0, where no KL can be, in one rollout or over ten; and below what chance allows "
        "however rare the replies with a large KL are.",
        unit="standard errors",
        raised=_WIRE,
        at_least=0,
    )
    max_start_kl_nats: float = setting(
        0.05,
        "|KL| of the first rollout; policy and reference are equal there, and anything else is a fault of numbers.",
        unit="nats per reply",
        raised=_WIRE,
        at_least=0,
    )
    max_first_ratio_error: float = setting(
        0.01,
        "|ratio − 1| of a rollout's first minibatch, before any step on it; else rollout and trainer disagree on "
        "log-probs.",
        unit="ratio of probabilities",
        raised=_WIRE,
        at_least=0,
    )
    min_entropy_share: float = setting(
        0.1,
        "Least entropy per token, over that of the start.",
        unit="share",
        raised="stops earlier: less loss of variety is borne; 0 turns it off",
        at_least=0,
        below=1,
    )
    max_length_factor: float = setting(
        5.0,
        "Mean reply length over that of the start, or the other way round: above 1, or 0 (off).",
        unit="factor",
        raised=_WIRE,
        at_least=0,
    )
    max_repetition_rise: float = setting(
        0.5,
        "Share of repeated 4-grams within replies: how much of the way from the start's to 1 it may rise.",
        unit="share",
        raised=_WIRE,
        at_least=0,
        at_most=1,
    )
    max_duplicate_rise: float = setting(
        0.7,
        "Share of replies that equal another one: how much of the way from the start's to 1 it may rise.",
        unit="share",
        raised=_WIRE,
        at_least=0,
        at_most=1,
    )
    max_truncation_rise: float = setting(
        0.6,
        "Of the replies that ended by themselves at the start, the share that is cut off at max_reply_tokens now: 0.6 "
        "is a rise from 0 to 0.6, or from 0.81 to 0.92.",
        unit="share",
        raised=_WIRE,
        at_least=0,
        at_most=1,
    )
    max_twin_gap: float = setting(
        2.5,
        "Gain since the start by the training preference model, less the gain by the watcher: over-optimisation. "
        "Needs a watcher (`preference_model.twin`).",
        unit="PM units",
        raised=_WIRE,
        at_least=0,
    )
    max_clip_fraction: float = setting(
        0.8,
        "Share of tokens whose gradient was clipped away, mean over a rollout's steps after the first.",
        unit="share",
        raised=_WIRE,
        at_least=0,
        at_most=1,
    )
    max_ratio_error: float = setting(
        1.0,
        "How far learning moved the log-prob of a token, up or down: mean over a rollout's tokens, of which each "
        "counts for at most 5, and over its steps after the first. At 1 the probability moved by a factor of 2.7.",
        unit="nats per token",
        raised=_WIRE,
        at_least=0,
    )
    patience: int = setting(
        2,
        "Rollouts, or rounds of learning, in a row that must be beyond a wire; an impossible KL, a first ratio that is "
        "not 1 and broken numbers need one.",
        unit="rollouts",
        raised="fewer false alarms, and a lost run goes on longer",
        at_least=1,
    )

    max_recoveries: int = setting(
        2,
        "How often PPO goes back to its last good weights and on with a smaller learning rate, where a wire tells of "
        "too large a step, before it stops; 0: stops at once.",
        unit="recoveries",
        raised="more tries before a run ends early, each of which costs the rollouts that it gives up",
        at_least=0,
        new=True,
    )
    recovery_rate: float = setting(
        0.5,
        "What each recovery multiplies the learning rate by.",
        unit="factor",
        raised="learns faster after a recovery, and is likelier to trip the wire again",
        above=0,
        at_most=1,
        new=True,
    )

    def check(self) -> None:
        super().check()
        if 0 < self.max_length_factor <= 1:
            expected = "a factor above 1, or 0 to turn the wire off"
            raise SettingError("max_length_factor", self.max_length_factor, expected)


@dataclass(frozen=True)
class PromptMix(Checked):
    """Which prompts come how often."""

    harmless_weight: float = setting(
        1.0,
        "How often a harmless (red-team) prompt comes for every time that a helpful one does.",
        unit="factor",
        raised="PPO sees more red-team prompts and fewer helpful ones; too much of it teaches refusals",
        at_least=0,
    )


@dataclass(frozen=True)
class TextLengths(Checked):
    """How long a prompt and its reply may be."""

    max_reply_tokens: int = setting(
        128,
        "Longest reply; longer ones are cut off there and scored as they are.",
        unit="tokens",
        raised=_LONGER_REPLIES,
        at_least=1,
    )
    max_prompt_tokens: int | None = setting(
        None,
        "Longest prompt; longer ones are left out and counted. Where not given, as long as leaves room for a reply in "
        "what the policy can hold and in what the preference model was trained on (`preference_model.max_tokens`).",
        unit="tokens",
        raised="longer dialogues come in; memory for the replies that are sampled together grows with the longest",
        at_least=1,
        new=True,
    )


@dataclass(frozen=True)
class PPOTraining(TrainingMemory, LogitsSettings, CheckpointSettings, TextLengths):
    """How the policy is trained. Reward = PM score - kl_coef * KL, per reply [60-67 of the paper's reading].

    Not stated in the paper and chosen here: KL is estimated by k1 and its penalty falls on each token, the
    coefficient is fixed, sampling is at temperature 1, the critic is a head on the policy's trunk, advantages are
    whitened over each rollout, and losses are means over reply tokens. docs/explanation/ppo.md has the choices; what
    each of them did is in docs/log/ppo.md, "PPO's open choices, with their noise".
    """

    learning_rate: float = setting(
        1e-4,
        "Learning rate of AdamW; the critic's own layers get ten times it. The default is for models of a few million "
        "weights; a published one gets 3e-6 or 1e-6 by its size, with adapters ten times that. 0 trains nothing.",
        unit="per step",
        raised="more score per rollout, until a step moves the policy too far (`clip_fraction`, `ratio`)",
        at_least=0,
    )
    kl_coef: float = setting(
        0.02,
        "λ of reward = score − λ·KL; the paper: 0.001.",
        unit="PM units per nat",
        raised="the policy stays closer to the initial one: less score, less over-optimisation",
        at_least=0,
    )
    kl_estimator: KLEstimator = setting(
        "k1",
        "What KL is estimated by: the log-ratio of the sampled token (`k1`, the paper's), its k3 form, or a sum over "
        "the vocabulary (`full`: exact, and one more forward pass of the reference per epoch).",
    )
    kl_placement: KLPlacement = setting(
        "per_token",
        "Where its penalty goes: into each token's reward, into the last one's, or into the loss (not with `k1`).",
    )
    kl_target_nats: float | None = setting(
        None,
        "Where given, kl_coef is only the start, and follows this KL up and down; fixed where not given.",
        unit="nats per reply",
        raised="the policy may go further from the initial one",
        above=0,
    )
    kl_horizon_samples: int = setting(
        640,
        "With a target: replies in which a KL 20 % off it moves kl_coef by 20 %.",
        unit="replies",
        raised="kl_coef follows more slowly and swings less",
        at_least=1,
    )
    cut_off_penalty: float = setting(
        0.0,
        "Taken off the score of a reply that is cut off at max_reply_tokens, in what PPO earns alone; every score that "
        "is shown is the preference model's.",
        unit="PM units",
        raised="replies learn to end by themselves sooner, whether or not their readers like them shorter",
        at_least=0,
        new=True,
    )
    clip_ratio: float = setting(
        0.2,
        "How far one rollout may move a token's probability before its gradient is clipped away; the paper: 0.2.",
        unit="share",
        raised="larger moves per rollout, and less stable ones",
        above=0,
    )
    value_clip: float | None = setting(
        None,
        "How far one rollout may move the critic's value of a token; not clipped where not given.",
        unit="PM units",
        raised="the critic follows faster",
        above=0,
    )
    discount: float = setting(
        1.0,
        "Discount of later rewards, per token; the paper: 1.",
        unit="factor per token",
        raised="a token is credited more with what comes long after it; 1: with all of it",
        above=0,
        at_most=1,
    )
    advantage: AdvantageKind = setting(
        "gae",
        "What a token is credited with: what it earned beyond the critic's expectation (`gae`), or what its reply "
        "earned beyond the mean of the prompt's other replies (`rloo`, leave one out), which needs "
        "`samples_per_prompt` and no critic: none is held or trained.",
        new=True,
    )
    gae_lambda: float = setting(
        0.95,
        "λ of generalised advantage estimation: 1 rests on the rewards alone, 0 on the critic's next value.",
        unit="factor per token",
        raised="less bias from the critic, more noise",
        at_least=0,
        at_most=1,
    )
    critic: CriticKind = setting(
        "shared",
        "Where the value head reads: the policy's states (`shared`), the same without a gradient into them "
        "(`detached`), or a trunk of its own that starts as the initial policy's (`separate`) or as the preference "
        "model's. A trunk of its own costs another model in memory.",
    )
    critic_warmup_iterations: int = setting(
        0,
        "First iterations, in which the critic alone learns and the policy stays the initial one.",
        unit="iterations",
        raised="better advantages at the start, and fewer iterations in which the policy learns",
        at_least=0,
    )
    value_coef: float = setting(
        0.1,
        "Weight of the critic's loss beside the policy's.",
        unit="per squared PM unit",
        raised="the critic learns faster, and a shared trunk bends more to it",
        at_least=0,
    )
    epochs: int = setting(
        2,
        "Passes over each rollout, the paper's K.",
        unit="passes",
        raised="more is learned from each reply, from log-probs that are older; clipping grows",
        at_least=1,
    )
    iterations: int = setting(
        40,
        "Rollouts: rounds of sampling, scoring and learning.",
        unit="rollouts",
        raised="a longer run: more score, more KL, more over-optimisation",
        at_least=1,
    )
    prompts_per_iteration: int = setting(
        64,
        "Prompts of a rollout, `samples_per_prompt` replies each.",
        unit="prompts",
        raised="less noisy advantages, and more time and memory per iteration",
        at_least=1,
    )
    samples_per_prompt: int = setting(
        1,
        "Replies to each prompt of a rollout.",
        unit="replies",
        raised="a better baseline for `rloo`, from fewer prompts where the rollout is to stay as large",
        at_least=1,
        new=True,
    )
    minibatch_replies: int = setting(
        64,
        "Replies per optimiser step.",
        unit="replies",
        raised="fewer and less noisy steps per rollout",
        at_least=1,
    )
    temperature: float = setting(
        1.0,
        "Of sampling; log-probs are always read at 1.",
        unit="factor on the log-probs' scale",
        raised="more varied replies, further from what the policy's log-probs say",
        above=0,
    )
    whiten_advantages: bool = setting(
        True, "Whether advantages are shifted and scaled to mean 0 and variance 1 over each rollout."
    )
    warmup_samples: int = setting(
        0,
        "Replies until the full learning rate, which rises from 0 along a line.",
        unit="replies",
        raised="a calmer start",
        at_least=0,
    )
    warmup_steps: int = setting(
        0,
        "Optimiser steps over which the learning rate rises along a line, for policy and critic each from its own "
        "first one. Adam's first step is the whole rate in every weight, however unsure its direction. A published "
        "model gets 20.",
        unit="steps",
        raised="a calmer start",
        at_least=0,
        new=True,
    )
    halve_every_samples: int | None = setting(
        None,
        "Replies after which the learning rate is halved, again and again; never where not given.",
        unit="replies",
        raised="the learning rate stays high for longer",
        at_least=1,
    )
    max_kl_nats: float | None = setting(
        None,
        "Beyond this KL training stops, and the last weights within it are kept; no limit where not given.",
        unit="nats per reply",
        raised="the policy may go further from the initial one",
        above=0,
    )
    snapshots: int = setting(
        0,
        "Snapshots of the run that are kept beside its result, at even steps of √KL.",
        unit="snapshots",
        raised="a finer curve of what the run went through; while it runs they take the disk of three times as many",
        at_least=0,
    )
    logp_every: int = setting(
        10,
        "Iterations between measurements of mean log-p accuracy on held-out comparisons; 0: never.",
        unit="iterations",
        raised="fewer points on its curve, and less time for them",
        at_least=0,
    )
    logp_pairs: int = setting(
        64,
        "Held-out comparisons of each question that it is measured on.",
        unit="pairs",
        raised="narrower intervals, and more time per measurement",
        at_least=1,
    )
    precision: Precision = setting("float32", PRECISION + " Sampling, scoring and reading compute in it too.")
    frozen_precision: HeldPrecision = setting(
        "float32",
        "What reference and preference models, which learn nothing here, are held and computed in; `bfloat16` halves "
        "their linear layers. Beside a policy in float32 the KL of the start is then rounding and not 0; beside one "
        "in bfloat16 all stays as it is. With lora_rank only a model that shares no weights with the policy is held "
        "so.",
        new=True,
    )
    checkpoint_every: int = setting(
        5, "Iterations " + CHECKPOINT_MEANING, unit="iterations", raised=CHECKPOINT_RAISED, at_least=1, new=True
    )
    watch: WatchSettings = setting(WatchSettings(), "Tripwires, [ppo.watch].")

    def check(self) -> None:
        super().check()
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator k1 in the loss holds nothing, since its gradient is zero on average; take kl_estimator "
                "'full' or 'k3', or kl_placement 'per_token'"
            )
        if self.kl_target_nats is not None and self.kl_coef == 0:
            raise ValueError("kl_coef is 0 with kl_target_nats given; expected a start above 0, which it can multiply")
        if self.critic_warmup_iterations >= self.iterations:
            raise ValueError(
                f"critic_warmup_iterations is {self.critic_warmup_iterations} of {self.iterations} iterations; "
                f"expected fewer, since the policy learns only in those that are left"
            )

        if self.advantage == "rloo":
            self._check_leave_one_out()

    def _check_leave_one_out(self) -> None:
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"advantage 'rloo' compares the replies to one prompt, and samples_per_prompt is "
                f"{self.samples_per_prompt}; expected at least 2"
            )
        about_a_critic = {"critic": "shared", "critic_warmup_iterations": 0, "value_clip": None, "discount": 1.0}
        for name, default in about_a_critic.items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} with advantage 'rloo', which has no critic and credits every "
                    f"token with its whole reply; leave {name} out, or take advantage 'gae'"
                )

    @property
    def replies_per_iteration(self) -> int:
        """Replies of a rollout."""
        return self.prompts_per_iteration * self.samples_per_prompt

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL term: the exact KL pulls at its own token only through its gradient."""
        return self.kl_placement == "loss" or self.kl_estimator == "full"


@dataclass(frozen=True)
class PPOSettings(PPOTraining, LoraSettings, PromptMix):
    """What the job `train_policy` is told: the sections [ppo] and [prompts], as far as they are about training."""


@dataclass(frozen=True)
class JudgedReplies(ForwardSettings, LogitsSettings, TextLengths):
    """Which replies a policy is judged by."""

    num_prompts: int = setting(
        256,
        "Held-out prompts that a policy is judged on, one reply each; all of them where there are fewer.",
        unit="prompts",
        raised="narrower intervals of score and KL, so that gates decide more surely; more time",
        at_least=1,
    )
    temperature: float = setting(
        1.0,
        "Of sampling; 1 judges the policy as it was trained.",
        unit="factor on the log-probs' scale",
        raised="more varied replies, of lower score as a rule",
        above=0,
    )
    precision: Precision = setting(
        "float32",
        "What the matrix products of sampling, reading and scoring are computed in; a gate compares policies that were "
        "judged in one format.",
        new=True,
    )


@dataclass(frozen=True)
class EvaluationSettings(JudgedReplies):
    """What the job `evaluate` is told. With `best_of` n, the reply that the PM likes best of n stands for its prompt.

    `best_of_points` asks for the expected score of the best of k as well, for each of these k up to n, from the same n
    replies: points for the picture of score against KL.
    """

    split: Literal["held_out", "train"] = setting("held_out", "Which of the prompts.")
    best_of: int = setting(
        1,
        "Replies of each prompt, of which the best is judged.",
        unit="replies",
        raised="a better reply of each prompt, and a further KL",
        at_least=1,
    )
    best_of_points: tuple[int, ...] = setting((), "Further numbers of replies to reckon the best of.")

    def check(self) -> None:
        super().check()
        check_points(self.best_of_points, self.best_of)


def check_points(points: tuple[int, ...], best_of: int) -> None:
    """Refuse to ask for the best of more replies than there are.

    Raises:
        ValueError: a point outside 1 to `best_of`.
    """
    for k in points:
        if not 1 <= k <= best_of:
            raise ValueError(
                f"best_of_points asks for the best of {k}; expected 1 to best_of = {best_of}. Raise best_of (and lower "
                "best_of_prompts: each costs best_of replies), or leave that point out"
            )


@dataclass(frozen=True)
class WritingSettings(Checked):
    """What the job `write_prompts` is told: how many prompts are written, and after what."""

    num_written: int = setting(
        1000,
        "Further training prompts that the initial policy writes after people's; fewer where the attempts are used up.",
        unit="prompts",
        raised="PPO sees more and other prompts; each costs some samples of the initial policy",
        at_least=1,
    )
    num_examples: int = setting(
        10,
        "People's opening messages that it is shown before each.",
        unit="messages",
        raised="what is written is closer to people's, and takes more of the context",
        at_least=1,
    )
    max_prompt_tokens: int = setting(
        64,
        "Longest text that is taken; longer ones are left out, and people's longer openings are not shown.",
        unit="tokens",
        raised="fewer are left out, and each takes longer to write",
        at_least=4,
    )
    min_characters: int = setting(
        8,
        "Shortest text that is taken.",
        unit="characters",
        raised="more short texts are left out",
        at_least=1,
        new=True,
    )
    temperature: float = setting(
        1.0,
        "Of the writing; near 0 every text is the same.",
        unit="factor on the log-probs' scale",
        raised="more varied prompts, and more nonsense among them",
        above=0,
        new=True,
    )
    max_attempts: int = setting(
        4,
        "Texts that are sampled at most for each one that is wanted.",
        unit="texts",
        raised="more of what is wanted is found where much is left out, in more time",
        at_least=1,
        new=True,
    )


def choices(settings: PPOSettings) -> Mapping[str, object]:
    """What the paper leaves open and no setting says: it stands beside the settings on the artifact."""
    own_trunk = settings.critic in ("separate", "preference_model")
    if settings.advantage == "rloo":
        clipped = "of the policy"
    else:
        clipped = "policy and critic each by itself" if own_trunk else "policy and critic together"
    critic = {
        "value_head_rate": f"{VALUE_HEAD_RATE:g} times the learning rate",
        "value_head": "one hidden layer of tanh, its output 0 at first; starts at the mean score of the first replies",
    }
    return {
        "optimiser": "AdamW, no weight decay",
        "betas": list(ADAM_BETAS),
        "eps": ADAM_EPS,
        "max_gradient_norm": MAX_GRADIENT_NORM,
        "gradients_clipped": clipped,
        **({} if settings.advantage == "rloo" else critic),
        "losses": "means over the reply tokens of a minibatch",
        "advantages": "over a whole rollout, whitened there" if settings.whiten_advantages else "over a whole rollout",
        "old_log_probs": "read again after sampling, in the layout of the first epoch",
        "score_of_a_cut_off_reply": "as it is, at its last token",
        "entropy_bonus": 0.0,
        "reference": "the initial policy, fixed",
        "dropout": 0.0,
        "dtype": "float32",
    }
