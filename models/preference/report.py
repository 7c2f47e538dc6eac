"""What a preference model's scores say about the held-out comparisons: accuracies with intervals, by group.

Read next: `models/preference/results.py`, which names what is measured, `models/preference/curves.py` and
`models/statistics/length_regression.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from models.preference.curves import (
    accuracy_of,
    confident_mistakes,
    histogram,
    histogram_edges,
    reliability,
    reliability_by_band,
    threshold_curve,
)
from models.preference.loss import ordered_rightly
from models.preference.results import (
    Accuracy,
    Calibration,
    HeldOutReport,
    Histograms,
    LengthRegressed,
    LengthRegressedReport,
    LongerWins,
    LongerWinsReport,
    Reliability,
    ScoreCounts,
    ThresholdCurve,
    ThresholdPoint,
)
from models.statistics.length_regression import length_log_odds, regress_out_length

if TYPE_CHECKING:
    from models.preference.model import PreferenceModel
    from models.preference.pairs import TokenPair

Entry = TypeVar("Entry")

# Few dialogues go on for longer; the later turns share one group.
LAST_TURN = 8


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A held-out comparison with the preference model's two scores, in nats."""

    id: str
    source: str
    question: str
    better_score: float
    worse_score: float
    length_difference: int  # tokens(better) − tokens(worse)
    rater: str | None = None
    tranche: str | None = None
    turn: int | None = None
    dialogue: int | None = None  # the same number for the comparisons of one dialogue, within this list alone

    @property
    def gap(self) -> float:
        """score(better) − score(worse)."""
        return self.better_score - self.worse_score

    def as_json(self) -> Mapping[str, object]:
        """The fields by name, for one line of a JSONL file."""
        return asdict(self)


def score_pairs(model: PreferenceModel, pairs: Sequence[TokenPair]) -> list[ScoredPair]:
    """Both scores of every pair, in the order given.

    Dialogues are numbered by their first appearance: what a comparison set calls them is made from their text, and must
    not outlive its erasure.
    """
    better, worse = model.score_pairs(pairs)
    numbers: dict[int, int] = {}
    return [
        ScoredPair(
            pair.id,
            pair.source,
            pair.question,
            better[i],
            worse[i],
            pair.length_difference,
            pair.rater,
            pair.tranche,
            pair.turn,
            None if pair.dialogue is None else numbers.setdefault(pair.dialogue, len(numbers)),
        )
        for i, pair in enumerate(pairs)
    ]


def held_out_report(pairs: Sequence[ScoredPair]) -> HeldOutReport:
    """Accuracy of the preference model, of "the longer reply wins", and of the scores without length; and the curves.

    Each has an overall figure and one per source; the model's own also one per
    question, tranche, turn and rater. Where length is regressed out, each source has its own slope, since
    raters may like length for one question and dislike it for another; the
    overall figure fits one slope to all pairs. `mean_score` is over better and worse
    replies alike: thresholds and histograms are relative to it. Intervals are robust to dependence within a
    dialogue (`accuracy_of`).
    """
    gaps = [pair.gap for pair in pairs]
    scores = [score for pair in pairs for score in (pair.better_score, pair.worse_score)]
    mean_loss = math.fsum(_softplus(-gap) for gap in gaps) / len(gaps) if gaps else None
    mean_score = math.fsum(scores) / len(scores) if scores else 0.0
    return HeldOutReport(
        **vars(model_accuracy(pairs)),
        loss=mean_loss,
        mean_score=mean_score,
        by_source=grouped(pairs, lambda pair: pair.source, model_accuracy),
        by_question=grouped(pairs, lambda pair: pair.question, model_accuracy),
        by_tranche=grouped(pairs, lambda pair: pair.tranche, model_accuracy),
        by_turn=grouped(pairs, _turn, model_accuracy),
        by_rater=grouped(pairs, lambda pair: pair.rater, model_accuracy),
        longer_wins=LongerWinsReport(
            **vars(_longer_wins(pairs)), by_source=grouped(pairs, lambda pair: pair.source, _longer_wins)
        ),
        length_regressed=LengthRegressedReport(
            **vars(_length_regressed(pairs)), by_source=grouped(pairs, lambda pair: pair.source, _length_regressed)
        ),
        calibration=Calibration(
            **vars(_reliability(pairs)),
            by_tranche=grouped(pairs, lambda pair: pair.tranche, _reliability),
            by_question=grouped(pairs, lambda pair: pair.question, _reliability),
            by_score_band=reliability_by_band(
                [pair.better_score for pair in pairs],
                [pair.worse_score for pair in pairs],
                mean_score,
                dialogues_of(pairs),
            ),
        ),
        threshold_curve=ThresholdCurve(
            all=_thresholds(pairs, mean_score),
            by_tranche=grouped(pairs, lambda pair: pair.tranche, lambda group: _thresholds(group, mean_score)),
        ),
        histograms=_histograms(pairs, mean_score),
        mistakes=confident_mistakes(pairs),
    )


def _turn(pair: ScoredPair) -> str | None:
    if pair.turn is None:
        return None
    return str(pair.turn) if pair.turn < LAST_TURN else f"{LAST_TURN} or later"


def _reliability(pairs: Sequence[ScoredPair]) -> Reliability:
    return reliability([pair.gap for pair in pairs], dialogues=dialogues_of(pairs))


def _thresholds(pairs: Sequence[ScoredPair], mean_score: float) -> tuple[ThresholdPoint, ...]:
    better, worse = [pair.better_score for pair in pairs], [pair.worse_score for pair in pairs]
    return threshold_curve(better, worse, mean_score, dialogues=dialogues_of(pairs))


def _histograms(pairs: Sequence[ScoredPair], mean_score: float) -> Histograms:
    """Counts of better and of worse scores, less the mean, in the same bins for all pairs, tranches and questions."""
    edges = histogram_edges([s - mean_score for pair in pairs for s in (pair.better_score, pair.worse_score)])

    def counts(group: Sequence[ScoredPair]) -> ScoreCounts:
        return ScoreCounts(
            better=tuple(histogram([pair.better_score - mean_score for pair in group], edges)),
            worse=tuple(histogram([pair.worse_score - mean_score for pair in group], edges)),
        )

    return Histograms(
        edges=tuple(edges),
        all=counts(pairs),
        by_tranche=grouped(pairs, lambda pair: pair.tranche, counts),
        by_question=grouped(pairs, lambda pair: pair.question, counts),
    )


def model_accuracy(pairs: Sequence[ScoredPair]) -> Accuracy:
    """Share of the pairs that the preference model orders rightly, with its interval; a tie counts half."""
    return accuracy_of(ordered_rightly(pair.gap for pair in pairs), dialogues_of(pairs))


def dialogues_of(pairs: Sequence[ScoredPair]) -> list[int | None]:
    """The dialogue of each pair, which its interval must know."""
    return [pair.dialogue for pair in pairs]


def _longer_wins(pairs: Sequence[ScoredPair]) -> LongerWins:
    differences = [pair.length_difference for pair in pairs]
    measured = accuracy_of(ordered_rightly(differences), dialogues_of(pairs))
    return LongerWins(**vars(measured), log_odds_per_token=length_log_odds(differences))


def _length_regressed(pairs: Sequence[ScoredPair]) -> LengthRegressed:
    if not pairs:
        return LengthRegressed(**vars(accuracy_of([])), score_per_token=None)
    regression = regress_out_length([pair.gap for pair in pairs], [pair.length_difference for pair in pairs])
    measured = accuracy_of(ordered_rightly(regression.residual_gaps), dialogues_of(pairs))
    return LengthRegressed(**vars(measured), score_per_token=regression.score_per_token)


def grouped(
    pairs: Sequence[ScoredPair], key: Callable[[ScoredPair], str | None], entry: Callable[[Sequence[ScoredPair]], Entry]
) -> dict[str, Entry]:
    """An entry per group, in the order of their names; pairs that name no group are in none."""
    groups: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        name = key(pair)
        if name is not None:
            groups.setdefault(name, []).append(pair)
    return {name: entry(groups[name]) for name in sorted(groups)}


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
