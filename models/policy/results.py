"""What PPO and the evaluation of a policy publish, as dataclasses without torch: jobs write them, reports read them.

`PPOResult` is results.json of models/jobs/train_policy.py, `CurvePoint` with its folder that of a snapshot on the way;
`Evaluation` is results.json of models/jobs/evaluate.py and `JudgedReply` a line of its replies.jsonl. Fields with a
default are those that results of some age or some settings don't have. Scores are in PM units, KL in nats per reply.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.chat.openings import opening
from models.chat.refusals import RefusedRecords
from models.runtime.results import IF_MEASURED
from models.statistics.reply_signals import CollapseSignals

Interval = tuple[float, float]
OpenInterval = tuple[float | None, float | None]
"""A 95 % interval of a mean; of a single value nothing is known, and both ends are None."""


@dataclass(frozen=True)
class CurvePoint:
    """One rollout that PPO learned from, as the policy was before it did; means over its replies."""

    samples: int
    """Replies learned from so far."""
    kl_nats: float
    score: float
    kl_coef: float | None = field(default=None, metadata=IF_MEASURED)
    """The one this rollout was learned from with: it may follow the KL."""
    entropy: float | None = field(default=None, metadata=IF_MEASURED)
    reply_tokens: float | None = field(default=None, metadata=IF_MEASURED)
    score_watcher: float | None = field(default=None, metadata=IF_MEASURED)
    twin_gap: float | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True)
class KeptSnapshot(CurvePoint):
    """A snapshot that a run kept on its way, and where in the run's result its weights lie."""

    folder: str = ""

    @property
    def point(self) -> CurvePoint:
        """The policy as the run measured it, wherever it lies."""
        return CurvePoint(**{name: value for name, value in vars(self).items() if name != "folder"})


@dataclass(frozen=True)
class RolloutSignals:
    """What the wires look at: means over the replies of one rollout, standard errors beside what is tested."""

    kl_nats: float  # per reply
    kl_error: float  # its standard error; infinite for a single reply
    replies: int
    entropy: float  # nats per token, exact
    reply_tokens: float
    truncated: float
    repeated_ngrams: float
    duplicates: float
    stock_reply: float  # share of the most frequent reply
    score: float
    score_watcher: float | None = None
    score_difference_variance: float | None = None  # of training score minus watcher's score, over replies

    @property
    def finite(self) -> bool:
        """Whether every number that a policy with broken weights would spoil is a number."""
        numbers = [self.kl_nats, self.entropy, self.score]
        return all(map(math.isfinite, numbers)) and (self.score_watcher is None or math.isfinite(self.score_watcher))


@dataclass(frozen=True)
class LastSignals(RolloutSignals):
    """Those of a run's result, with how far the two preference models are apart on it."""

    twin_gap: float | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True)
class RaisedAlarm:
    """An alarm of the watch, whether it stopped the run or passed; iterations count from 1."""

    iteration: int
    wire: str
    found: str


LEARNED_WIRES = (
    "ratio", "clip_fraction", "entropy", "duplicates", "repetition", "length", "truncation", "twin_gap", "max_kl_nats",
)  # fmt: skip
"""Wires, and the limit on the KL, that tell of a policy that learned too much; after a step or two, it was the step."""


@dataclass(frozen=True)
class Recovery:
    """A tripped wire after which PPO went on from its last good weights, with a smaller step."""

    iteration: int
    """After which it went back, counted from 1."""
    wire: str
    found: str
    back_to: int
    """The iteration after which those weights came; 0: the start's."""
    learning_rate: float
    """Learned with from then on, before any warm-up or halving."""


@dataclass(frozen=True)
class WatchResult:
    """Which wire stopped the run, and every alarm, also those that passed."""

    stopped_by: str | None
    alarms: tuple[RaisedAlarm, ...]
    start: RolloutSignals | None = None
    end: LastSignals | None = None


@dataclass(frozen=True)
class LogpPoint:
    """Mean log-p accuracy of the policy on held-out comparisons of each question, when it had learned from so many."""

    samples: int
    ci: Mapping[str, Interval] | None = field(default=None, metadata=IF_MEASURED)
    helpful: float | None = field(default=None, metadata=IF_MEASURED)
    harmless: float | None = field(default=None, metadata=IF_MEASURED)

    @property
    def by_kind(self) -> dict[str, float]:
        """The accuracies by question, of those that were measured."""
        both = {"helpful": self.helpful, "harmless": self.harmless}
        return {kind: accuracy for kind, accuracy in both.items() if accuracy is not None}


@dataclass(frozen=True)
class LogpAccuracy:
    """Mean log-p accuracy along the run, beside that of the preference model on the same pairs, by question."""

    pairs: Mapping[str, int]
    preference_model: Mapping[str, float]
    curve: tuple[LogpPoint, ...]
    refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """Held-out comparisons that the chat template refused."""
    dialogues: Mapping[str, int | None] | None = field(default=None, metadata=IF_MEASURED)
    preference_model_ci: Mapping[str, Interval] | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True)
class PPOResult:
    """How PPO went and how it ended. The end is measured on the first iteration's prompts, with new random numbers."""

    optimiser_steps: int
    samples: int
    """Replies learned from; those of rollouts that were given up don't count."""
    kl_nats: float
    score_start: float | None
    score_end: float
    entropy: float | None = None
    reply_tokens: float | None = None
    truncated: float | None = None
    stopped: str | None = None
    """Why training stopped before its last iteration, in words."""
    kept_iteration: int | None = field(default=None, metadata=IF_MEASURED)
    """Of a run that was stopped: after which iteration the weights came that it keeps; 0: the start's."""
    recoveries: tuple[Recovery, ...] | None = field(default=None, metadata=IF_MEASURED)
    """How often it went back and on with a smaller step; None where it never did."""
    kl_coef_end: float | None = None
    sampler_logratio_max: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`PPOSettings` as JSON, those of their time: today's checks may refuse what was right then."""
    choices: Mapping[str, Any] = field(default_factory=dict)
    prompts_too_long: int | None = None
    prompts_refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """Of the prompts to train on, by the chat template."""
    harmless_share: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    roles: Mapping[str, str] | None = field(default=None, metadata=IF_MEASURED)
    """With adapters: how each model was held."""
    trained_parameters: int | None = field(default=None, metadata=IF_MEASURED)
    watch: WatchResult | None = field(default=None, metadata=IF_MEASURED)
    logp_accuracy: LogpAccuracy | None = field(default=None, metadata=IF_MEASURED)
    snapshots: tuple[KeptSnapshot, ...] | None = field(default=None, metadata=IF_MEASURED)

    @property
    def learning_rate(self) -> float | None:
        """The rate it was trained with, after any warm-up."""
        return self.settings.get("learning_rate")

    @property
    def fixed_kl_coef(self) -> float | None:
        """The KL coefficient of the whole run; None where it followed the KL."""
        return self.settings.get("kl_coef") if self.settings.get("kl_target_nats") is None else None


@dataclass(frozen=True)
class JudgedReply:
    """One prompt of an evaluation with the reply that stands for it."""

    prompt_id: str
    kind: str
    messages: Sequence[Mapping[str, str]]
    reply: str
    score: float
    kl_nats: float
    """Sum of log pi/pi_0 over its tokens, plus log n − (n − 1)/n where it is the best of n."""
    reply_tokens: int
    truncated: bool
    entropy: float = math.nan
    """Per token."""
    repeated_ngrams: float = math.nan
    scores: Sequence[float] | None = field(default=None, metadata=IF_MEASURED)
    """Of all n replies, where the best of k was asked for."""
    watcher_score: float | None = field(default=None, metadata=IF_MEASURED)
    dialogue: int | None = field(default=None, metadata=IF_MEASURED)
    """The same number for the prompts of an evaluation that open alike; None in one of before it was written down."""

    @property
    def cluster(self) -> Hashable | None:
        """What it shares with the other turns of its dialogue: the number, or in older results the opening itself."""
        return opening(self.messages) or None if self.dialogue is None else self.dialogue


@dataclass(frozen=True)
class EvaluationPart:
    """Means over prompts with 95 % intervals, robust to dependence within a dialogue; of all prompts or of one kind."""

    pm_score: float
    pm_score_ci: OpenInterval
    kl_nats: float
    kl_ci: OpenInterval | None = field(default=None, metadata=IF_MEASURED)
    num_prompts: int | None = field(default=None, metadata=IF_MEASURED)
    reply_tokens: float | None = field(default=None, metadata=IF_MEASURED)
    truncated: float | None = field(default=None, metadata=IF_MEASURED)
    """Share of replies that were cut off."""
    entropy: float | None = field(default=None, metadata=IF_MEASURED)
    """Per token."""
    collapse: CollapseSignals | None = field(default=None, metadata=IF_MEASURED)
    watcher_score: float | None = field(default=None, metadata=IF_MEASURED)
    watcher_score_ci: OpenInterval | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True)
class BestOfPoint:
    """The expected score of the best of k replies, and its distance from the policy that wrote the k."""

    k: int
    kl_nats: float
    pm_score: float
    pm_score_ci: OpenInterval
    num_prompts: int | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True)
class Evaluation(EvaluationPart):
    """What a policy's replies to prompts are worth, for all prompts and for each kind.

    Refusals of `by_kind["helpful"]` are those of ordinary requests.
    """

    best_of: int = 1
    by_kind: Mapping[str, EvaluationPart] = field(default_factory=dict)
    prompts_too_long: int | None = field(default=None, metadata=IF_MEASURED)
    prompts_refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """By the chat template."""
    split: str | None = field(default=None, metadata=IF_MEASURED)
    best_of_points: tuple[BestOfPoint, ...] | None = field(default=None, metadata=IF_MEASURED)

    @property
    def of_ordinary_requests(self) -> EvaluationPart | None:
        """The part of helpful prompts; None where there were none."""
        return self.by_kind.get("helpful")
