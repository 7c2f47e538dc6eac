"""The square-root law in the cycle report: its rows, its JSON, and what the picture shows."""

from __future__ import annotations

import json

import pytest

from models.policy.results import BestOfPoint, CurvePoint
from models.runtime.results import part_to_json
from orchestrator.judging.kl_law import curve_law
from orchestrator.reports.kl_law import best_of_rows, law_rows
from orchestrator.reports.pictures.kl_law import kl_law
from tests.orchestrator.reports.curves import curve
from tests.orchestrator.reports.policy_results import evaluation

TOLERANCE = 1e-6
BEST = evaluation(
    best_of=4,
    best_of_points=(
        BestOfPoint(k=1, kl_nats=0.0, pm_score=1.0, pm_score_ci=(0.9, 1.1), num_prompts=9),
        BestOfPoint(k=4, kl_nats=0.636294, pm_score=2.0, pm_score_ci=(1.8, 2.2), num_prompts=9),
    ),
)


def test_the_rows_say_slope_departure_and_forecast() -> None:
    rows = dict(law_rows(curve(bend=12)))
    assert rows["√KL law"].startswith("slope 2 [2, 2] per √nat, R² 1.000, from KL 0 to 5.76 nats (13 of 21 points)")
    # √KL 2.4 is point 12; the first point beyond it had learned from 13 * 64 replies.
    assert rows["… departure"].startswith("at KL 5.76 nats, after 832 samples: slope 2 before,")
    # One unit more than 5.8 needs √KL 2.9.
    assert rows["… forecast"].startswith("one more PM unit at KL 8.41 nats")
    assert "which the curve has left" in rows["… forecast"]
    assert "… begins late" not in rows
    assert "… by the watcher" not in rows


def test_a_straight_curve_has_no_departure_and_the_watcher_its_own_slope() -> None:
    rows = dict(law_rows(curve(bend=20, watcher=0.5)))
    assert rows["… departure"] == "none found"
    assert rows["… by the watcher"].startswith("slope 1 [")
    law = curve_law(curve(bend=20, watcher=0.5))
    assert law is not None
    numbers = part_to_json(law)
    assert numbers["watcher"]["slope"] == pytest.approx(numbers["slope"] / 2, abs=TOLERANCE)
    assert numbers["forecast"]["kind"] == "forecast"
    json.dumps(numbers, allow_nan=False)


def test_a_run_that_did_not_move_says_so() -> None:
    still = [CurvePoint(samples=64 * i, kl_nats=0.0, score=float(i)) for i in range(5)]
    assert law_rows(still)[0][1].startswith("not identifiable: KL never exceeds 0.0001 nats")
    assert law_rows([]) == []
    assert curve_law([]) is None


def test_best_of_points_are_rows() -> None:
    assert best_of_rows(BEST)[1] == ("… best of 4", "PM score 2 [1.8, 2.2] at KL 0.636 nats")
    assert best_of_rows(evaluation(best_of=16)) == []


def test_the_picture_shows_curve_line_departure_and_points() -> None:
    after = evaluation(kl_nats=16.0, pm_score=5.5, pm_score_ci=(5.0, None))
    figure = kl_law(curve(bend=12, watcher=0.5), BEST, after)
    assert figure is not None
    [axes] = figure.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert lines["PPO, training PM"].get_xdata()[:3] == pytest.approx([0.0, 0.2, 0.4])
    assert {"watcher", "law", "departure"} <= lines.keys()
    # The line is drawn through 1 and 1 + 2 * 2.4.
    assert list(lines["law"].get_ydata()) == pytest.approx([1.0, 5.8], abs=1e-3)
    assert list(lines["departure"].get_xdata()) == pytest.approx([2.4, 2.4])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "best of k, held-out" in labels
    assert "new policy, held-out" in labels
    assert [text.get_text() for text in axes.texts] == ["1", "4"]


def test_the_yardstick_is_a_point_where_no_others_were_asked_for() -> None:
    # ln 16 − 15/16 = 1.835
    best = evaluation(best_of=16, kl_nats=1.835, pm_score=3.0, pm_score_ci=(2.5, 3.25))
    figure = kl_law(curve(bend=12), best, None)
    assert figure is not None
    [axes] = figure.axes
    [bars] = axes.containers
    point, _, [interval] = bars.lines
    assert bars.get_label() == "best of k, held-out"
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((1.3546, 3.0), abs=1e-4)
    assert interval.get_segments()[0][:, 1].tolist() == pytest.approx([2.5, 3.25])
    assert [text.get_text() for text in axes.texts] == ["16"]


def test_without_a_curve_there_is_no_picture() -> None:
    assert kl_law([], None, None) is None
    assert kl_law(curve(bend=3)[:1], None, None) is None
