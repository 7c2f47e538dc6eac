"""What lies behind a preference model's one accuracy: is it calibrated, where does it stop telling apart, where is it
surely wrong. Pure functions of scores in nats; `models/preference/report.py` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Protocol

from models.preference.loss import ordered_rightly
from models.preference.results import Accuracy, BandReliability, Mistake, Reliability, ReliabilityBin, ThresholdPoint
from models.statistics.intervals import (
    Clusters,
    clustered,
    grouped_values,
    normal_quantile,
    share_interval,
    student_quantile,
)
from models.statistics.logistic import logistic_slope, sigmoid

MAX_BINS = 10
# Fewer pairs in a bin have an interval as wide as the scale; small sets get fewer bins instead.
MIN_BIN_PAIRS = 20
MIN_BAND_PAIRS = 3 * MIN_BIN_PAIRS
BANDS = {2: ("lower half", "upper half"), 3: ("lowest third", "middle third", "highest third")}
"""Names of score bands by how many of them there are pairs for."""
NUM_THRESHOLDS = 10
HISTOGRAM_BINS = 24
NUM_MISTAKES = 20


class Scored(Protocol):
    """What is needed of `models.preference.report.ScoredPair`."""

    @property
    def id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def better_score(self) -> float: ...
    @property
    def worse_score(self) -> float: ...
    @property
    def gap(self) -> float: ...


def accuracy_of(outcomes: Sequence[float], dialogues: Clusters | None = None) -> Accuracy:
    """The mean of outcomes (1, 0, or 1/2 for a tie) with its 95 % interval; accuracy is None where there are none.

    Comparisons of one dialogue share prompt, rater and mood: they count as n / `design_effect` independent ones, and
    `dialogues` is the number of dialogues they are from. Where no dialogue is known that is None, the design effect 1,
    and the interval Wilson's.
    """
    n = len(outcomes)
    accuracy = math.fsum(outcomes) / n if n else None
    effect, num_dialogues = clustered(outcomes, dialogues) if n else (1.0, None)
    low, high = share_interval(accuracy or 0.0, n, design_effect=effect, num_clusters=num_dialogues)
    return Accuracy(accuracy=accuracy, ci=(low, high), n=n, dialogues=num_dialogues, design_effect=effect)


def reliability(
    gaps: Sequence[float],
    max_bins: int = MAX_BINS,
    min_pairs: int = MIN_BIN_PAIRS,
    dialogues: Clusters | None = None,
) -> Reliability:
    """Does a score difference of Δ win as often as it says, 1 / (1 + e^−Δ) of the time?

    `gaps` are score(better) − score(worse). Pairs are put into bins of about equal
    number by the size of the gap; a bin tells which share of its pairs is ordered
    rightly (`accuracy`, with its interval) beside what the gaps predict (`predicted`).

    `expected_calibration_error` is the mean distance of the two, weighted by pairs. It
    is above 0 even for a perfect model, by chance: `error_by_chance` is what one with
    these gaps would show, Σ_b (n_b/n)·sqrt(2/π)·sd_b. `slope` is the logistic slope of
    outcomes on gaps: 1 is calibrated, below 1 over-confident, above 1 under-confident.

    The intervals are robust to dependence within `dialogues`, where those are given.

    Source: arXiv:2204.05862, section 3.4 and equation 4.2.
    """
    # In one order, so that the last digits do not depend on the order of the pairs.
    places = sorted(range(len(gaps)), key=lambda i: (abs(gaps[i]), gaps[i]))
    ordered = [gaps[i] for i in places]
    named = None if dialogues is None else [dialogues[i] for i in places]
    bins = []
    error = chance = 0.0
    n = len(ordered)
    for start, end in _equal_bins(ordered, max_bins, min_pairs):
        members = ordered[start:end]
        sizes = [abs(gap) for gap in members]
        wins = [sigmoid(size) for size in sizes]
        predicted = math.fsum(wins) / len(wins)
        right = ordered_rightly(members)
        measured = accuracy_of(right, None if named is None else named[start:end])
        bins.append(
            ReliabilityBin(
                low=sizes[0],
                high=sizes[-1],
                mean_gap=math.fsum(sizes) / len(sizes),
                predicted=predicted,
                **vars(measured),
            )
        )
        error += len(members) / n * abs(math.fsum(right) / len(right) - predicted)
        # The share of right pairs in the bin has this standard deviation; |normal| has mean sd·sqrt(2/π).
        chance += math.sqrt(2 / math.pi) * math.sqrt(math.fsum(p * (1 - p) for p in wins)) / n
    slope = logistic_slope(ordered, named)
    groups = None if named is None else grouped_values(ordered, named)
    few = groups is not None and 1 < len(groups) < n
    quantile = student_quantile(0.95, len(groups) - 1) if groups is not None and few else normal_quantile(0.95)
    half = 0.0 if slope is None else quantile * slope[1]
    return Reliability(
        n=n,
        expected_calibration_error=error if n else None,
        error_by_chance=chance if n else None,
        slope=None if slope is None else slope[0],
        slope_ci=None if slope is None else (slope[0] - half, slope[0] + half),
        bins=tuple(bins),
    )


def _equal_bins(ordered: Sequence[float], max_bins: int, min_pairs: int) -> list[tuple[int, int]]:
    """Where gaps in ascending size are cut into bins of about equal number; equal sizes stay together."""
    number = min(max_bins, max(1, len(ordered) // min_pairs))
    bins: list[tuple[int, int]] = []
    start = 0
    for k in range(1, number + 1):
        end = len(ordered) * k // number
        while 0 < end < len(ordered) and abs(ordered[end]) == abs(ordered[end - 1]):
            end += 1
        if end > start:
            bins.append((start, end))
            start = end
    return bins


def reliability_by_band(
    better_scores: Sequence[float], worse_scores: Sequence[float], mean: float, dialogues: Clusters | None = None
) -> dict[str, BandReliability]:
    """`reliability` of the pairs that score low and of those that score high: a policy that is trained goes up there.

    Bands are thirds of the pairs by the lower of their two scores, which does not depend on who won; halves, or none at
    all, where a band would have fewer pairs than `MIN_BAND_PAIRS`. `low` and `high` are the band's lower scores,
    relative to `mean`.

    Source: arXiv:2204.05862, section 3.4 and figure 25: a preference model is least to be trusted at high scores.
    """
    scored = _by_lower_score(better_scores, worse_scores, dialogues)
    names = BANDS.get(min(len(scored) // MIN_BAND_PAIRS, max(BANDS)), ())
    bands = {}
    for k, name in enumerate(names):
        members = scored[len(scored) * k // len(names) : len(scored) * (k + 1) // len(names)]
        named = None if dialogues is None else [dialogue for *_, dialogue in members]
        measured = reliability([gap for _, gap, _ in members], dialogues=named)
        bands[name] = BandReliability(low=members[0][0] - mean, high=members[-1][0] - mean, **vars(measured))
    return bands


def _by_lower_score(
    better_scores: Sequence[float], worse_scores: Sequence[float], dialogues: Clusters | None
) -> list[tuple[float, float, Hashable]]:
    """(lower of the two scores, gap, dialogue) of each pair, the lowest first."""
    named: Clusters = [None] * len(better_scores) if dialogues is None else dialogues
    columns = zip(better_scores, worse_scores, named, strict=True)
    return sorted(((min(b, w), b - w, dialogue) for b, w, dialogue in columns), key=lambda pair: pair[:2])


def threshold_curve(
    better_scores: Sequence[float],
    worse_scores: Sequence[float],
    mean: float,
    steps: int = NUM_THRESHOLDS,
    dialogues: Clusters | None = None,
) -> tuple[ThresholdPoint, ...]:
    """Accuracy on the pairs whose two scores both reach a threshold, for `steps` thresholds from none upwards.

    Thresholds are relative to `mean` and lie at the tenths of the lower of a pair's two
    scores, so that the first entry is every pair and the last the best tenth. Where the
    curve falls, the preference model no longer tells good replies apart: collect
    comparisons of the newest policy.

    Source: arXiv:2204.05862, figure 25.
    """
    pairs = _by_lower_score(better_scores, worse_scores, dialogues)
    curve = []
    before: float | None = None
    for k in range(steps):
        if not pairs:
            break
        threshold = pairs[len(pairs) * k // steps][0]
        if threshold == before:
            continue
        before = threshold
        kept = [(gap, dialogue) for low, gap, dialogue in pairs if low >= threshold]
        measured = accuracy_of(ordered_rightly(gap for gap, _ in kept), [dialogue for _, dialogue in kept])
        curve.append(ThresholdPoint(threshold=threshold - mean, **vars(measured)))
    return tuple(curve)


def histogram_edges(values: Sequence[float], num_bins: int = HISTOGRAM_BINS) -> list[float]:
    """Edges of at most `num_bins` + 1 equal bins with a round width that hold every value.

    Values from −1.1 to 1.9 with 24 bins: 3.0 / 24 = 0.125, the next round width is 0.2, edges −1.2, −1.0 … 2.0.
    """
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    least = (high - low) / num_bins
    if not least > 0:
        return [low - 0.5, low + 0.5]
    power = 10.0 ** math.floor(math.log10(least))
    width = power * next(step for step in (1, 2, 2.5, 5, 10, 20) if step * power >= least * (1 - 1e-12))
    first, last = math.floor(low / width), math.ceil(high / width)
    # The highest value must lie below the last edge or on it; an only bin has two edges.
    return [width * k for k in range(first, max(last, first + 1) + 1)]


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """How many values lie in each bin; the last bin holds its upper edge, values outside are counted at the ends."""
    counts = [0] * (len(edges) - 1)
    width = (edges[-1] - edges[0]) / len(counts)
    for value in values:
        counts[min(len(counts) - 1, max(0, math.floor((value - edges[0]) / width)))] += 1
    return counts


def confident_mistakes(pairs: Sequence[Scored], number: int = NUM_MISTAKES) -> tuple[Mistake, ...]:
    """The pairs that the preference model orders wrongly with the widest gap, widest first.

    They name comparisons by id and hold no text, so that erasing a rater leaves nothing of theirs here.
    """
    wrong = sorted((pair for pair in pairs if pair.gap < 0), key=lambda pair: (pair.gap, pair.id))
    return tuple(
        Mistake(
            id=pair.id,
            source=pair.source,
            question=pair.question,
            better_score=pair.better_score,
            worse_score=pair.worse_score,
            gap=pair.gap,
        )
        for pair in wrong[:number]
    )
