"""The pictures of the report: what each shows, there where there are numbers, the same bytes for the same numbers."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from models.initial_policy.results import DistillationCourse, DistillationPoint
from models.policy.results import CurvePoint, LogpAccuracy, LogpPoint
from orchestrator.reports.cycle_text import to_markdown
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.pictures.catalogue import PICTURES, draw_all
from orchestrator.reports.pictures.distillation import distillation_kl
from orchestrator.reports.pictures.kl_law import kl_law
from orchestrator.reports.pictures.ppo_course import ppo_course
from orchestrator.reports.pictures.preference_model import (
    accuracy_by_group,
    accuracy_by_threshold,
    policy_scores,
    reliability,
    scaling,
    score_histograms,
)
from orchestrator.reports.pictures.weeks import weeks_so_far
from orchestrator.reports.weeks import Week
from tests.orchestrator.reports.policy_results import BARE_PPO
from tests.orchestrator.reports.policy_results import points as points_of_curve

pytest.importorskip("torch")

from models.preference.report import ScoredPair, held_out_report
from models.preference.results import (
    Accuracy,
    Calibration,
    Histograms,
    ReliabilityBin,
    ScoreCounts,
    ThresholdCurve,
    ThresholdPoint,
)
from models.statistics.scaling import ScalingPoint, fit_scaling
from orchestrator.judging.forecasts import MeasuredPoint, Scaling
from tests.orchestrator import published_results
from tests.orchestrator.published_results import preference_model

# Twelve iterations of 8 replies: KL i²/10, the score rises by 0.5 each and the watcher sees half of it; entropy falls
# from 2 nats to 0.9, replies grow from 10 tokens to 21.
TRAINING = replace(
    BARE_PPO,
    curve=tuple(
        CurvePoint(
            samples=8 * i,
            kl_nats=i * i / 10,
            score=i / 2,
            kl_coef=0.2,
            entropy=2 - i / 10,
            reply_tokens=10.0 + i,
            score_watcher=i / 4,
            twin_gap=i / 4,
        )
        for i in range(12)
    ),
    samples=96,
    stopped="the training PM's gain exceeds the watcher's (iteration 13)",
    settings={"kl_coef": 0.2, "kl_target_nats": None},
    logp_accuracy=LogpAccuracy(
        pairs={"helpful": 64, "harmless": 32},
        preference_model={"helpful": 0.75, "harmless": 0.625},
        curve=tuple(
            LogpPoint(
                samples=s,
                helpful=0.5 + s / 800,
                harmless=0.5 - s / 960,
                ci={"helpful": (0.4, 0.65), "harmless": (0.35, 0.55)},
            )
            for s in (0, 40, 80, 96)
        ),
    ),
)


RIGHT = Accuracy(accuracy=0.75, ci=(0.5, 0.875), n=40)
WEEKS = (
    Week(cycle=1, decision="promote", elo=40.0, elo_ci=(10.0, 70.0), kl_nats=1.0, helpful=RIGHT, harmless=RIGHT),
    Week(cycle=2, decision="refuse", kl_nats=1.0, score_gain=0.5, score_gain_ci=(0.25, 0.75), helpful=RIGHT),
    Week(cycle=3, decision="promote", elo=-20.0, elo_ci=(-50.0, 10.0), kl_nats=2.0, harmless=RIGHT),
)


def numbers(num_pairs: int, tranches: tuple[str, ...]) -> CycleNumbers:
    """What a cycle knows, as far as the pictures need it."""
    generator = random.Random(0)
    pairs = [
        ScoredPair(
            str(number),
            source="a very long name of a source of comparisons",
            question="harmless" if number % 3 == 0 else "helpful",
            better_score=generator.gauss(0.6, 1),
            worse_score=generator.gauss(0.0, 1),
            length_difference=number % 7 - 3,
            rater=str(number % 12),
            tranche=tranches[number % len(tranches)],
            turn=number % 10 + 1,
        )
        for number in range(num_pairs)
    ]
    distilled = tuple(
        DistillationPoint(tokens=100 * i, held_out_kl_nats=1 / (1 + i), train_kl_nats=1.1 / (1 + i) if i else None)
        for i in range(5)
    )
    return CycleNumbers(
        cycle=3,
        name="small",
        distillation=DistillationCourse(
            prompt_version="hhh-1",
            num_tokens=400,
            held_out_kl_before=1.0,
            held_out_kl_after=0.2,
            distillation_curve=distilled,
        ),
        preference_model=preference_model(held_out_report(pairs)),
        scaling=fitted(CURVE),
        training=TRAINING,
        weeks=WEEKS,
    )


def both_policies() -> dict[str, dict[str, list[float]]]:
    """Scores of either policy's replies."""
    generator = random.Random(1)
    scores = {kind: [generator.gauss(1.5, 0.5) for _ in range(40)] for kind in ("helpful", "harmless")}
    return {"snapshot": scores, "initial": scores}


CURVE = [ScalingPoint(10**6, 100 * 2**k, 0.55 + 0.02 * k, 300) for k in range(4)]


def fitted(curve: Sequence[ScalingPoint]) -> Scaling:
    points = tuple(
        MeasuredPoint(
            parameters=point.parameters,
            comparisons=point.comparisons,
            accuracy=point.accuracy,
            n=round(point.n),
            ci=(point.accuracy - 0.05, point.accuracy + 0.05),
        )
        for point in curve
    )
    return Scaling(**vars(fit_scaling(curve)), source="the ledger", points=points, left_out={})


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_every_picture_is_drawn_600_pixels_wide_and_the_same_twice():
    known = numbers(300, ("base", "online"))
    pictures = draw_all(known, both_policies())
    assert [picture.name for picture in pictures] == list(PICTURES)
    for picture in pictures:
        assert size(picture.png)[0] == 600, picture.name
    assert [picture.png for picture in draw_all(known, both_policies())] == [picture.png for picture in pictures]


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_ppos_course_shows_score_reward_kl_entropy_length_and_mean_log_p_accuracy_to_where_it_stopped():
    figure = ppo_course(TRAINING)
    assert figure is not None
    scores, kl, entropy, length, accuracy = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Score and total reward",
        "KL to the initial policy",
        "Entropy",
        "Length of replies",
        "Mean log-p accuracy, held-out comparisons",
    ]
    units = ["PM score", "nats per reply", "nats per token", "tokens", "share"]
    assert [axes.get_ylabel() for axes in figure.axes] == units
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", "", "replies learned from"]
    assert scores.get_shared_x_axes().joined(scores, accuracy)
    # A line alone needs less height than lines with a legend.
    assert scores.get_gridspec().get_height_ratios() == [1.9, 1.4, 1.4, 1.4, 1.9]
    lines = {str(line.get_label()): line for line in scores.lines}
    assert list(lines) == legend(scores) == ["stopped", "training PM", "watcher", "r = score − 0.2·KL"]
    samples = [8 * i for i in range(12)]
    for name, last in (("training PM", 5.5), ("watcher", 2.75), ("r = score − 0.2·KL", 5.5 - 0.2 * 12.1)):
        assert list(lines[name].get_xdata()) == samples
        assert lines[name].get_ydata()[-1] == pytest.approx(last)
    # The seventh point: score 3 and KL 3.6, so 3 − 0.2 · 3.6.
    assert lines["r = score − 0.2·KL"].get_ydata()[6] == pytest.approx(3.0 - 0.72)
    _, nats = kl.lines
    assert list(nats.get_ydata()) == pytest.approx([i * i / 10 for i in range(12)])
    for axes, highest, lowest in ((entropy, 2.0, 0.9), (length, 21.0, 10.0)):
        _, line = axes.lines
        assert list(line.get_xdata()) == samples
        assert (max(line.get_ydata()), min(line.get_ydata())) == pytest.approx((highest, lowest))
        # From 0 on, so that a tenth less looks like a tenth less.
        assert axes.get_ylim() == pytest.approx((0.0, 1.1 * highest))
    for axes in figure.axes:
        assert list(axes.lines[0].get_xdata()) == [96, 96]
    [below] = figure.legends
    assert [text.get_text() for text in below.get_texts()] == ["helpful", "harmless", "the PM on the same"]
    by_name = {str(line.get_label()): line for line in accuracy.lines}
    assert list(by_name["helpful"].get_xdata()) == [0, 40, 80, 96]
    assert list(by_name["helpful"].get_ydata()) == pytest.approx([0.5, 0.55, 0.6, 0.62])
    assert list(by_name["harmless"].get_ydata())[-1] == pytest.approx(0.4)
    ceilings = [line.get_ydata()[0] for line in accuracy.lines[:-1] if line.get_linestyle() == ":"]
    assert ceilings == [0.75, 0.625]


def test_the_total_reward_is_drawn_with_the_coefficient_that_each_point_was_rewarded_with():
    curve = [
        CurvePoint(samples=8 * i, kl_nats=float(i), score=1.0, kl_coef=kl_coef)
        for i, kl_coef in enumerate([0.2, 0.3, 0.25])
    ]
    adaptive = {"kl_coef": 0.2, "kl_target_nats": 2.0}
    figure = ppo_course(replace(BARE_PPO, curve=tuple(curve), settings=adaptive))
    assert figure is not None
    scores = figure.axes[0]
    assert legend(scores) == ["training PM", "r = score − λ·KL"]
    # 1 − 0.2 · 0, 1 − 0.3 · 1, 1 − 0.25 · 2.
    assert list(scores.lines[1].get_ydata()) == pytest.approx([1.0, 0.7, 0.5])
    assert scores.get_title(loc="left") == "Score and total reward, λ from 0.2 to 0.25"
    # A run without a penalty has no reward beside its score, and neither entropy nor length can be taller than at 0.
    free = tuple(replace(point, kl_coef=0.0, entropy=0.0, reply_tokens=0.0) for point in curve)
    figure = ppo_course(replace(BARE_PPO, curve=free, settings={"kl_coef": 0.0}))
    assert figure is not None
    assert legend(figure.axes[0]) == ["training PM"]
    assert [axes.get_ylim() for axes in figure.axes[2:]] == [(0.0, 1.0), (0.0, 1.0)]


def test_a_curve_of_before_coefficients_were_kept_has_the_reward_of_a_fixed_one():
    curve = points_of_curve(3)
    fixed = {"kl_coef": 0.5, "kl_target_nats": None}
    figure = ppo_course(replace(BARE_PPO, curve=tuple(curve), settings=fixed))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Score and total reward",
        "KL to the initial policy",
    ]
    assert legend(figure.axes[0]) == ["training PM", "r = score − 0.5·KL"]
    assert list(figure.axes[0].lines[1].get_ydata()) == pytest.approx([0.0, 0.95, 1.9])


def test_a_plain_course_has_no_stop_no_watcher_and_no_reward_that_it_cannot_know():
    curve = points_of_curve(3)
    adaptive = {"kl_coef": 0.2, "kl_target_nats": 2.0}
    figure = ppo_course(replace(BARE_PPO, curve=tuple(curve), settings=adaptive))
    assert figure is not None
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert legend(figure.axes[0]) == ["training PM"]
    assert ppo_course(replace(BARE_PPO, curve=curve[:1])) is None


@pytest.mark.parametrize("num_pairs", [1, 3])
def test_a_handful_of_held_out_comparisons_can_be_drawn(num_pairs):
    assert {"reliability", "score_histograms"} <= {picture.name for picture in draw_all(numbers(num_pairs, ("base",)))}


def test_a_cycle_without_a_preference_model_has_no_pictures():
    assert draw_all(CycleNumbers(cycle=1, name="x")) == []


def test_the_report_shows_pictures_where_they_are_and_mistakes_by_id():
    known = numbers(300, ("base", "online"))
    pictures = draw_all(known, both_policies())
    text = to_markdown(known, [(picture, f"{picture.name}.png") for picture in pictures])
    for picture in pictures:
        assert f"![{picture.caption}]({picture.name}.png)" in text
    assert known.preference_model is not None
    worst = known.preference_model.held_out.mistakes[0]
    assert f"| {worst.id} | {worst.source} | {worst.question} |" in text
    assert "| PM calibration | " in text
    assert "| … harmless | " in text


def test_nothing_is_drawn_before_it_is_asked_for():
    code = "import sys, orchestrator.stages; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def bars(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Values and edges of each histogram by its label."""
    return {str(patch.get_label()): tuple(map(list, patch.get_data()[:2])) for patch in axes.patches}


def points(container: Any) -> tuple[list[float], list[float], list[list[float]]]:
    """x, y and the ends of the intervals of a panel's points."""
    line, _, [intervals] = container.lines
    return list(line.get_xdata()), list(line.get_ydata()), [list(ends[:, 1]) for ends in intervals.get_segments()]


def test_the_reliability_plot_shows_each_bin_beside_the_calibrated_line():
    calibration = Calibration(
        n=70,
        expected_calibration_error=0.0234,
        error_by_chance=0.03,
        slope=0.8,
        slope_ci=(0.6, 1.0),
        bins=(
            ReliabilityBin(low=0.1, high=1.0, mean_gap=0.5, predicted=0.62, accuracy=0.6, ci=(0.5, 0.75), n=35),
            ReliabilityBin(low=1.0, high=3.0, mean_gap=2.0, predicted=0.88, accuracy=0.9, ci=(0.8, 0.95), n=35),
        ),
        by_tranche={},
        by_question={},
    )
    figure = reliability(published_results.held_out_report(calibration=calibration))
    assert figure is not None
    [axes] = figure.axes
    assert axes.get_title(loc="left") == "Reliability: calibration error 0.023, slope 0.80"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("score gap, PM units", "share ordered rightly")
    # Outside: inside it hid the interval that lay there.
    assert axes.get_legend() is None
    [below] = figure.legends
    assert [text.get_text() for text in below.get_texts()] == [
        "calibrated: 1 / (1 + e^-gap)",
        "held-out, 95 % interval",
    ]
    figure.draw_without_rendering()
    assert below.get_window_extent().y1 <= axes.xaxis.label.get_window_extent().y0
    calibrated = axes.lines[0]
    # The line's middle is at half of 2.0 * 1.08: 1 / (1 + e^-1.08) = 0.7465.
    assert (calibrated.get_xdata()[50], calibrated.get_ydata()[50]) == pytest.approx((1.08, 0.7465), abs=1e-4)
    assert calibrated.get_ydata()[0] == 0.5
    [shown] = axes.containers
    x, y, intervals = points(shown)
    assert (x, y) == ([0.5, 2.0], [0.6, 0.9])
    assert intervals == [pytest.approx([0.5, 0.75]), pytest.approx([0.8, 0.95])]
    low, high = axes.get_ylim()
    assert low < 0.4
    assert high > 1


def test_the_threshold_curve_shows_all_with_its_interval_and_each_tranche():
    def curve(*accuracies: float) -> tuple[ThresholdPoint, ...]:
        return tuple(
            ThresholdPoint(threshold=t - 1.0, accuracy=a, ci=(a - 0.1, a + 0.05), n=10)
            for t, a in enumerate(accuracies)
        )

    by_tranche = {"online": curve(0.8, 0.6), "base": curve(0.65, 0.7, 0.75), "short": curve(0.5)}
    curves = ThresholdCurve(all=curve(0.7, 0.68, 0.6), by_tranche=by_tranche)
    figure = accuracy_by_threshold(published_results.held_out_report(threshold_curve=curves))
    assert figure is not None
    [axes] = figure.axes
    assert axes.get_title(loc="left") == "Accuracy where both replies score above t"
    assert axes.get_xlabel() == "t, PM units above the mean held-out score"
    assert axes.get_ylabel() == "share ordered rightly"
    # A tranche of one point has no curve.
    assert legend(axes) == ["all, 95 % interval", "base", "online"]
    *curves, chance = axes.lines
    assert [list(line.get_xdata()) for line in curves] == [[-1, 0, 1], [-1, 0, 1], [-1, 0]]
    assert [list(line.get_ydata()) for line in curves] == [[0.7, 0.68, 0.6], [0.65, 0.7, 0.75], [0.8, 0.6]]
    assert list(chance.get_ydata()) == [0.5, 0.5]
    [band] = axes.collections
    corners = {(round(float(x), 6), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(-1, 0.6), (0, 0.58), (1, 0.5), (-1, 0.75), (0, 0.73), (1, 0.65)}


def test_score_histograms_show_the_share_of_better_and_worse_replies_by_tranche():
    edges = [-1.0, 0.0, 1.0, 2.0]
    base = ScoreCounts(better=(1, 1, 2), worse=(3, 1, 0))
    online = ScoreCounts(better=(0, 1, 1), worse=(0, 2, 0))
    by_tranche = {"base": base, "online": online}
    histograms = Histograms(edges=tuple(edges), all=base, by_tranche=by_tranche, by_question={})
    figure = score_histograms(published_results.held_out_report(histograms=histograms))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["base (n = 4)", "online (n = 2)"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "score above the mean, PM units"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["share of replies"] * 2
    assert bars(figure.axes[0]) == {
        "worse replies": ([0.75, 0.25, 0.0], edges),
        "better replies": ([0.25, 0.25, 0.5], edges),
    }
    assert bars(figure.axes[1])["better replies"] == ([0.0, 0.5, 0.5], edges)
    assert legend(figure.axes[1]) == ["worse replies", "better replies"]
    # One tranche alone is all there is.
    one_tranche = replace(histograms, by_tranche={"base": base})
    alone = score_histograms(published_results.held_out_report(histograms=one_tranche))
    assert alone is not None
    assert [axes.get_title(loc="left") for axes in alone.axes] == ["held-out comparisons (n = 4)"]


def test_the_two_panel_view_lays_both_policies_over_the_data_of_their_kind():
    edges = [-1.0, 0.0, 1.0]
    helpful, harmless = ScoreCounts(better=(1, 3), worse=(3, 1)), ScoreCounts(better=(2, 2), worse=(4, 0))
    by_question = {"helpful": helpful, "harmless": harmless}
    histograms = Histograms(edges=tuple(edges), all=helpful, by_tranche={}, by_question=by_question)
    scores = {
        # Above the mean of 10: -0.5, 0.5, 0.5, 2.5, which lies beyond the data's last bin.
        "snapshot": {"helpful": [9.5, 10.5, 10.5, 12.5], "harmless": [10.5]},
        "initial": {"helpful": [9.5, 9.5], "harmless": [9.5, 10.5]},
    }
    figure = policy_scores(published_results.held_out_report(histograms=histograms, mean_score=10.0), scores)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Helpful prompts", "Red-team prompts"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "score above the data's mean, PM units"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["share of replies"] * 2
    first, second = map(bars, figure.axes)
    assert first == {
        "worse replies": ([0.75, 0.25], edges),
        "better replies": ([0.25, 0.75], edges),
        "initial policy": ([1.0], [-1.0, 0.0]),
        "new policy": ([0.25, 0.5, 0.0, 0.25], [-1.0, 0.0, 1.0, 2.0, 3.0]),
    }
    assert second["better replies"] == ([0.5, 0.5], edges)
    assert second["initial policy"] == ([0.5, 0.5], edges)
    assert second["new policy"] == ([1.0], [0.0, 1.0])
    assert legend(figure.axes[0]) == ["worse replies", "better replies", "initial policy", "new policy"]


def test_a_forecast_that_holds_every_accuracy_is_not_drawn():
    known = fitted(CURVE)
    figure = scaling(known)
    assert figure is not None
    assert legend(figure.axes[0]) == ["fit", "1 M parameters", "twice as many"]
    twice = known.forecast.twice_the_comparisons
    assert twice is not None
    vague = replace(twice, accuracy=replace(twice.accuracy, ci=(-0.24, 1.42)))
    known = replace(known, forecast=replace(known.forecast, twice_the_comparisons=vague))
    figure = scaling(known)
    assert figure is not None
    [axes] = figure.axes
    assert legend(axes) == ["1 M parameters"]
    # Nor is there room for accuracies that can't be.
    *points, last = known.points
    figure = scaling(replace(known, points=(*points, replace(last, ci=(-0.1, 1.1)))))
    assert figure is not None
    assert figure.axes[0].get_ylim() == (0.0, 1.0)


def test_accuracy_by_group_says_what_its_lines_are_and_names_raters_by_id():
    group = Accuracy(accuracy=0.6, ci=(0.5, 0.7), n=9)
    figure = accuracy_by_group(published_results.held_out_report(accuracy=0.62, by_rater={"24": group, "7": group}))
    assert figure is not None
    [axes] = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chance", "all together"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rater id 24 (n = 9)", "rater id 7 (n = 9)"]


def test_the_weeks_show_peoples_elo_and_accuracy_by_question_and_what_was_refused():
    figure = weeks_so_far(WEEKS)
    assert figure is not None
    gained, accuracy = figure.axes
    # Nobody compared the second week's, and its gain by the preference model is no Elo.
    assert points(gained.containers[0])[:2] == ([1, 3], [40.0, -20.0])
    assert points(gained.containers[0])[2] == [pytest.approx([10.0, 70.0]), pytest.approx([-50.0, 10.0])]
    assert [points(shown)[0] for shown in accuracy.containers] == [[1, 2], [1, 3]]
    hollow = [line for line in accuracy.lines if line.get_color() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[2]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chance", "helpful", "harmless"]


def test_weeks_that_nobody_compared_show_the_gain_and_one_question_shows_all():
    alone = Week(cycle=4, decision="promote", score_gain=0.5, score_gain_ci=(0.25, 0.75), pm=RIGHT)
    figure = weeks_so_far([alone])
    assert figure is not None
    gained, accuracy = figure.axes
    assert gained.get_title(loc="left") == "Score gain; people compared none yet"
    assert points(gained.containers[0])[:2] == ([4], [0.5])
    assert points(accuracy.containers[0])[:2] == ([4], [0.75])
    assert weeks_so_far([]) is None


def test_no_legend_lies_on_a_panel():
    """Above its panel or below all of them; inside it hid an interval."""
    figures = [
        ppo_course(TRAINING),
        scaling(fitted(CURVE)),
        weeks_so_far(WEEKS),
        kl_law(TRAINING.curve, None, None),
        distillation_kl(numbers(30, ("base",)).distillation),
    ]
    for figure in figures:
        assert figure is not None
        figure.draw_without_rendering()
        for axes in figure.axes:
            inside = axes.get_window_extent()
            own = axes.get_legend()
            for shown in [*figure.legends, *([own] if own is not None else [])]:
                box = shown.get_window_extent()
                assert box.y0 >= inside.y1 or box.y1 <= inside.y0
