"""What a preference model is published with, as types: its held-out report, its calibration, its twin. No torch.

`models/preference/report.py` and `models/preference/curves.py` measure what is named here, `measuring.py` the rest;
reports, gates, pictures and forecasts read it with `models/runtime/results.py`. Fields with a default were not measured
by every version that a home may hold. Scores and gaps are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.chat.refusals import RefusedRecords
from models.runtime.results import IF_MEASURED
from models.statistics.scaling import CurvePoint

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The share of pairs ordered rightly, a tie counted half, with its 95 % interval; None of no pairs."""

    accuracy: float | None
    ci: Interval
    n: int
    dialogues: int | None = None
    """That the pairs are from; None where that is not known."""
    design_effect: float = 1.0
    """The pairs count as n / design_effect independent ones."""


@dataclass(frozen=True, kw_only=True)
class LongerWins(Accuracy):
    """How often the longer reply wins."""

    log_odds_per_token: float | None
    """None where no finite figure fits: every pair goes the same way, or all lengths are equal."""


@dataclass(frozen=True, kw_only=True)
class LongerWinsReport(LongerWins):
    """The same, of all and by source."""

    by_source: Mapping[str, LongerWins]


@dataclass(frozen=True, kw_only=True)
class LengthRegressed(Accuracy):
    """The accuracy that is left of the scores with length regressed out."""

    score_per_token: float | None


@dataclass(frozen=True, kw_only=True)
class LengthRegressedReport(LengthRegressed):
    """The same, of all and by source, each with a slope of its own."""

    by_source: Mapping[str, LengthRegressed]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin(Accuracy):
    """Pairs with gaps of about one size, from `low` to `high`; `predicted` is the accuracy that the gaps promise."""

    low: float
    high: float
    mean_gap: float
    predicted: float


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Whether score gaps win as often as they say; `models.preference.curves.reliability` says how it is measured."""

    n: int
    expected_calibration_error: float | None
    error_by_chance: float | None
    slope: float | None
    slope_ci: Interval | None
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, kw_only=True)
class BandReliability(Reliability):
    """The same of the pairs whose lower score lies in a band, from `low` to `high` above the mean score."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Calibration(Reliability):
    """Reliability of all pairs, and of parts of them."""

    by_tranche: Mapping[str, Reliability]
    by_question: Mapping[str, Reliability]
    by_score_band: Mapping[str, BandReliability] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ThresholdPoint(Accuracy):
    """Accuracy on the pairs whose two scores both lie `threshold` or more above the mean score."""

    threshold: float


@dataclass(frozen=True, kw_only=True)
class ThresholdCurve:
    """Accuracy against the threshold, from none upwards."""

    all: tuple[ThresholdPoint, ...]
    by_tranche: Mapping[str, tuple[ThresholdPoint, ...]]


@dataclass(frozen=True, kw_only=True)
class ScoreCounts:
    """How many better and how many worse replies score within each bin."""

    better: tuple[int, ...]
    worse: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Histograms:
    """Scores above the mean in the same bins for all pairs, tranches and questions."""

    edges: tuple[float, ...]
    all: ScoreCounts
    by_tranche: Mapping[str, ScoreCounts]
    by_question: Mapping[str, ScoreCounts]


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A pair that is ordered wrongly; by id and without text, so that erasing a rater leaves nothing of theirs."""

    id: str
    source: str
    question: str
    better_score: float
    worse_score: float
    gap: float


@dataclass(frozen=True, kw_only=True)
class HeldOutReport(Accuracy):
    """What the scores say about held-out comparisons: `models.preference.report.held_out_report`."""

    by_source: Mapping[str, Accuracy]
    by_question: Mapping[str, Accuracy]
    by_rater: Mapping[str, Accuracy] = field(default_factory=dict)
    by_tranche: Mapping[str, Accuracy] = field(default_factory=dict)
    by_turn: Mapping[str, Accuracy] = field(default_factory=dict)
    loss: float | None = None
    """Mean negative log-likelihood of the raters' choices; None of no pairs."""
    mean_score: float | None = None
    """Over better and worse replies alike; thresholds, bands and histograms are relative to it."""
    longer_wins: LongerWinsReport | None = None
    length_regressed: LengthRegressedReport | None = None
    calibration: Calibration | None = None
    threshold_curve: ThresholdCurve | None = None
    histograms: Histograms | None = None
    mistakes: tuple[Mistake, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference set over which the offset was measured: its SHA-256, its pairs read, and those left out."""

    sha256: str
    num_pairs: int
    too_long: int
    refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """By the chat template."""


@dataclass(frozen=True, kw_only=True)
class Offset:
    """The mean score over the reference set; only differences from it mean anything beside another model's."""

    offset: float | None = None
    reference: Reference | None = None
    """Before there were reference sets `offset` was a mean over a set that changed every week."""

    @property
    def over_reference_set(self) -> float | None:
        """The offset where it is one of a reference set."""
        return self.offset if self.reference is not None else None


@dataclass(frozen=True, kw_only=True)
class Ties:
    """What became of ties; accuracy knows none, so the held-out ones have their mean gap, whatever its sign."""

    train: int
    left_out: int
    held_out: int
    held_out_mean_abs_gap: float | None


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """The adapter that was trained: its size, the layers that have one, and how many weights moved."""

    rank: int
    alpha: float
    layers: tuple[str, ...]
    trained_parameters: int


@dataclass(frozen=True, kw_only=True)
class CostOfAPart:
    """What training on a part costs: `models.preference.twins.cost_of_a_part`. Costs are shares of accuracy."""

    n: int
    production_accuracy: float
    watcher_accuracy: float
    slope_per_ln_comparisons: float
    cost: float
    cost_ci: Interval | None
    method: str


@dataclass(frozen=True, kw_only=True)
class TwinPart:
    """How the comparisons are shared between the two models, and which part this one trained on."""

    twin: str
    part: str


@dataclass(frozen=True, kw_only=True)
class WatcherPart(TwinPart, CostOfAPart):
    """The same of a watcher, which also knows how the two compare."""

    num_production: int
    num_watcher: int
    production_share: float


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """As much of a preference model's results as is needed to stand it beside others."""

    num_train: int
    held_out: HeldOutReport
    num_parameters: int | None = None
    trained_on: tuple[str, ...] | None = None
    """The questions that moved its weights."""
    learning_curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PreferenceModelResults(ModelSummary, Offset):
    """What `models/jobs/train_preference_model.py` publishes."""

    num_held_out: int
    dropped_too_long: int
    max_tokens: int
    optimiser_steps: int
    train_loss: float | None
    choices: Mapping[str, Any]
    """Everything about the training that the paper leaves open or that changes the result, for the model's card."""
    dropped_too_long_by_split: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, RefusedRecords] | None = field(default=None, metadata=IF_MEASURED)
    """Comparisons by split that the chat template refuses; the splits that have any."""
    skills: HeldOutReport | None = field(default=None, metadata=IF_MEASURED)
    ties: Ties | None = field(default=None, metadata=IF_MEASURED)
    lora: TrainedAdapter | None = field(default=None, metadata=IF_MEASURED)
    twin: WatcherPart | TwinPart | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True, kw_only=True)
class OrderedPairs(Accuracy):
    """What `models/jobs/check_preference_model.py` publishes: how a preference model orders pairs by hand."""

    by_question: Mapping[str, Accuracy]
    by_source: Mapping[str, Accuracy]
    wrong: tuple[str, ...] = ()
    """Ids of the pairs ordered wrongly, ties among them."""
    mistakes: tuple[Mistake, ...] = ()
    """The most confident ones."""
    too_long: Mapping[str, int] = field(default_factory=dict)
    """Pairs by source that the model can't read whole."""
    refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """By the chat template."""
    refused_by_source: Mapping[str, int] | None = field(default=None, metadata=IF_MEASURED)
