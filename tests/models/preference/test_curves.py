"""Calibration, threshold curve, histograms and mistakes, on numbers worked by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from models.preference.curves import (
    confident_mistakes,
    histogram,
    histogram_edges,
    reliability,
    reliability_by_band,
    threshold_curve,
)
from models.preference.report import ScoredPair, held_out_report
from models.statistics.logistic import logistic_slope

ROUNDING = 1e-9
# A slope from 20,000 drawn outcomes is within 3 standard errors (about 0.02 each) of the one they were drawn with.
DRAWN_TOLERANCE = 0.06

LOG3 = math.log(3)


def pair(name: str, better: float, worse: float, **fields: object) -> ScoredPair:
    return ScoredPair(name, "x", "helpful", better, worse, 0, **fields)  # type: ignore[arg-type]


def test_slope_and_its_standard_error_of_four_pairs():
    slope, error = logistic_slope([1, 1, 1, -1])
    assert slope == pytest.approx(LOG3, abs=ROUNDING)
    # Information: four pairs of d² = 1 and p(1 − p) = 3/4 · 1/4.
    assert error == pytest.approx(1 / math.sqrt(4 * 3 / 16), abs=ROUNDING)
    # In other units the slope and its error go with them.
    slope, error = logistic_slope([10, 10, 10, -10])
    assert (slope, error) == (pytest.approx(LOG3 / 10, abs=ROUNDING), pytest.approx(0.11547, abs=1e-5))


def test_the_slopes_error_grows_where_pairs_of_a_dialogue_go_together():
    # Gradients d·(1 − p) are 1/4, 1/4, 1/4, −3/4. In dialogues of the first two and the last two their sums are 1/2
    # and −1/2: 2/1 · 1/2 = 1 over 4/3 · (3/16 + 9/16) = 1. Three equal ones in one dialogue: 2 · 2 · 9/16 = 9/4.
    slope, error = logistic_slope([1, 1, 1, -1], ["a", "a", "b", "b"])
    assert (slope, error) == (pytest.approx(LOG3, abs=ROUNDING), pytest.approx(math.sqrt(4 / 3), abs=ROUNDING))
    assert logistic_slope([1, 1, 1, -1], ["a", "a", "a", "b"])[1] == pytest.approx(1.5 * error, abs=ROUNDING)


def test_reliability_of_two_bins():
    # Two gaps of log 3, which promise 3/4, both kept; two of 0, which promise 1/2: ties, half right each.
    found = reliability([LOG3, 0.0, LOG3, 0.0], max_bins=2, min_pairs=1)
    low, high = found.bins
    assert (low.n, low.accuracy, low.predicted, low.mean_gap) == (2, 0.5, 0.5, 0.0)
    assert (high.n, high.accuracy) == (2, 1.0)
    assert high.predicted == pytest.approx(0.75, abs=ROUNDING)
    # (2/4)·|0.5 − 0.5| + (2/4)·|1 − 0.75|
    assert found.expected_calibration_error == pytest.approx(0.125, abs=ROUNDING)
    # sqrt(2/π) · (sqrt(2 · 1/4) + sqrt(2 · 3/16)) / 4
    by_chance = math.sqrt(2 / math.pi) * (math.sqrt(0.5) + math.sqrt(0.375)) / 4
    assert found.error_by_chance == pytest.approx(by_chance, abs=ROUNDING)
    # Nothing was lost, so that no finite slope is the most likely.
    assert found.slope is None


def test_exchanging_the_sides_turns_accuracy_round_and_leaves_the_prediction():
    gaps = [1.0, 2.0, -0.5, 0.25]
    there, back = (reliability(g, max_bins=1) for g in (gaps, [-gap for gap in gaps]))
    assert there.bins[0].accuracy == 0.75
    assert back.bins[0].accuracy == 0.25
    assert there.bins[0].predicted == back.bins[0].predicted
    assert there.slope == pytest.approx(-back.slope, abs=ROUNDING)


def test_equal_gaps_share_a_bin_and_the_order_of_pairs_plays_no_part():
    gaps = [0.1, -0.1, 0.1, 0.1, 0.2, 0.3]
    found = reliability(gaps, max_bins=3, min_pairs=2)
    assert [entry.n for entry in found.bins] == [4, 2]
    shuffled = random.Random(3).sample(gaps, len(gaps))
    assert reliability(shuffled, max_bins=3, min_pairs=2) == found


def test_bands_are_thirds_by_the_lower_score_and_each_has_its_own_calibration():
    # 60 pairs at each of three heights, all with gaps of log 3, which promise 3/4: kept by 3 in 4 at the lower two and
    # by 1 in 2 at the highest.
    lower, kept = (-1.0, 0.0, 2.0), (45, 45, 30)
    sides = [
        (low + LOG3, low) if i < right else (low, low + LOG3)
        for low, right in zip(lower, kept, strict=True)
        for i in range(60)
    ]
    random.Random(1).shuffle(sides)
    found = reliability_by_band([b for b, _ in sides], [w for _, w in sides], 0.5)
    assert list(found) == ["lowest third", "middle third", "highest third"]
    for band, low in zip(found.values(), lower, strict=True):
        assert (band.n, band.low, band.high) == (60, low - 0.5, low - 0.5)
    errors = [band.expected_calibration_error for band in found.values()]
    assert errors == pytest.approx([0.0, 0.0, 0.25], abs=ROUNDING)
    # ln(3)·slope is the log-odds of the share: log 3 and 0.
    slopes = [band.slope for band in found.values()]
    assert slopes == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)
    # Who won plays no part in which band a pair is in.
    turned = reliability_by_band([w for _, w in sides], [b for b, _ in sides], 0.5)
    assert [band.slope for band in turned.values()] == pytest.approx([-1.0, -1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(("n", "bands"), [(0, 0), (119, 0), (120, 2), (179, 2), (180, 3), (1000, 3)])
def test_bands_have_sixty_pairs_or_there_are_fewer(n, bands):
    found = reliability_by_band([float(i) for i in range(n)], [float(i) - 1 for i in range(n)], 0.0)
    assert len(found) == bands
    assert sum(band.n for band in found.values()) == (n if bands else 0)
    assert all(band.n >= 60 for band in found.values())


@pytest.mark.parametrize(("planted", "verdict"), [(0.5, "over"), (1.0, "right"), (2.0, "under")])
def test_a_planted_slope_is_found_and_a_calibrated_model_has_the_error_of_chance(planted, verdict):
    generator = random.Random(0)
    gaps = []
    for _ in range(20_000):
        size = generator.expovariate(1.0)
        gaps.append(size if generator.random() < 1 / (1 + math.exp(-planted * size)) else -size)
    found = reliability(gaps)
    assert found.slope == pytest.approx(planted, abs=DRAWN_TOLERANCE * planted)
    assert found.slope_ci[0] < planted < found.slope_ci[1]
    assert len(found.bins) == 10
    if verdict == "right":
        assert found.expected_calibration_error < 2 * found.error_by_chance
    else:
        assert found.expected_calibration_error > 5 * found.error_by_chance


def test_every_interval_of_the_report_is_wider_where_a_dialogue_goes_together():
    # 40 dialogues of 5 comparisons, all of a dialogue ordered alike: 28 rightly.
    rightly = [number % 10 < 7 for number in range(40)]
    alone = [
        pair(f"{number}/{turn}", *((1.0, 0.0) if right else (0.0, 1.0)), tranche="base", turn=turn + 1)
        for number, right in enumerate(rightly)
        for turn in range(5)
    ]
    together = [replace(one, dialogue=place // 5) for place, one in enumerate(alone)]
    plain, robust = held_out_report(alone), held_out_report(together)

    def widths(report):
        calibration, slope = report.calibration, report.calibration.slope_ci
        entries = [report, report.by_tranche["base"], report.by_source["x"], calibration.bins[0]]
        entries += [report.threshold_curve.all[0]]
        return [entry.ci[1] - entry.ci[0] for entry in entries] + [slope[1] - slope[0]]

    ratios = [wide / narrow for wide, narrow in zip(widths(robust), widths(plain), strict=True)]
    # Five that go together are one: sqrt(5) = 2.24, a little more by Student's t and less by Wilson's form.
    assert ratios == pytest.approx([math.sqrt(5)] * len(ratios), rel=0.05)
    assert (robust.accuracy, robust.n, robust.dialogues) == (0.7, 200, 40)
    # 40/39 · Σ over 200/199 · Σ / 5.
    assert robust.design_effect == pytest.approx(5 * 40 / 39 * 199 / 200)
    # A turn has one comparison of each dialogue.
    assert robust.by_turn["1"] == replace(plain.by_turn["1"], dialogues=40)


def test_threshold_curve_keeps_pairs_of_which_both_replies_reach_it():
    better, worse = [3.0, 2.0, 0.0, 4.0], [1.0, 2.5, -1.0, 0.0]
    # The lower scores are −1, 0, 1, 2: with four steps each is a threshold. Gaps in that order: 1, 4, 2, −0.5.
    curve = threshold_curve(better, worse, mean=1.0, steps=4)
    assert [entry.threshold for entry in curve] == [-2.0, -1.0, 0.0, 1.0]
    assert [entry.n for entry in curve] == [4, 3, 2, 1]
    assert [entry.accuracy for entry in curve] == [0.75, pytest.approx(2 / 3), 0.5, 0.0]
    assert threshold_curve([], [], 0.0) == ()
    # Every pair at one threshold: one entry, not four.
    assert len(threshold_curve([1, 1, 1], [0, 0, 0], 0.0, steps=4)) == 1


def test_histogram_has_round_edges_and_counts_every_value():
    edges = histogram_edges([-1.1, 1.9])
    assert edges[0] == pytest.approx(-1.2)
    assert edges[-1] == pytest.approx(2.0)
    assert len(edges) - 1 == 16  # 3.2 / 0.2
    assert histogram([0.0, 0.1, 0.5, 1.0, 2.0, -3.0], [0.0, 0.5, 1.0]) == [3, 3]
    assert histogram_edges([0.7, 0.7]) == [0.7 - 0.5, 0.7 + 0.5]
    assert histogram_edges([]) == [-0.5, 0.5]


@pytest.mark.parametrize("scale", [1e-7, 1.0, 3e4])
def test_histogram_edges_hold_the_values_at_any_scale(scale):
    generator = random.Random(1)
    for _ in range(200):
        values = [scale * generator.gauss(0.3, 1) for _ in range(generator.randint(2, 20))]
        edges = histogram_edges(values)
        assert edges[0] <= min(values)
        assert max(values) <= edges[-1]
        assert 2 <= len(edges) <= 24 + 2


def test_mistakes_are_the_wrong_pairs_widest_first_and_hold_no_text():
    pairs = [pair("a", 0.0, 1.0), pair("b", 1.0, 0.0), pair("c", -1.0, 3.0), pair("d", 0.0, 0.0), pair("e", 2.0, 3.0)]
    found = confident_mistakes(pairs, number=2)
    assert [(entry.id, entry.gap) for entry in found] == [("c", -4.0), ("a", -1.0)]
    assert set(vars(found[0])) == {"id", "source", "question", "better_score", "worse_score", "gap"}


def test_report_groups_by_tranche_and_turn_and_centres_the_scores():
    pairs = [
        pair("a", 3.0, 1.0, tranche="base", turn=1),
        pair("b", 1.0, 3.0, tranche="online", turn=9),
        pair("c", 3.0, 1.0, tranche="online", turn=8),
        pair("d", 5.0, -1.0),
    ]
    report = held_out_report(pairs)
    assert report.mean_score == 2.0  # 4 + 4 + 4 + 4, over eight replies
    assert {name: (e.accuracy, e.n) for name, e in report.by_tranche.items()} == {
        "base": (1.0, 1),
        "online": (0.5, 2),
    }
    assert {name: e.n for name, e in report.by_turn.items()} == {"1": 1, "8 or later": 2}
    counts = report.histograms
    assert (counts.edges[0], counts.edges[-1]) == (-3.0, 3.0)
    # Better scores less the mean: 1, −1, 1, 3, in bins of 0.25 from −3; the last bin holds its upper edge.
    assert {place: n for place, n in enumerate(counts.all.better) if n} == {8: 1, 16: 2, 23: 1}
    assert {place: n for place, n in enumerate(counts.all.worse) if n} == {0: 1, 8: 2, 16: 1}
    assert sum(counts.by_tranche["online"].better) == 2
    assert [entry.id for entry in report.mistakes] == ["b"]
    assert report.threshold_curve.all[0].threshold == -3.0


def test_report_of_no_pairs_says_so():
    report = held_out_report([])
    assert report.accuracy is None
    assert report.calibration.expected_calibration_error is None
    assert report.calibration.bins == report.mistakes == report.threshold_curve.all == ()
