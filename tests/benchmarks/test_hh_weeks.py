"""What the two weeks on HH-RLHF print and when they fail, on numbers worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from benchmarks import hh_weeks


def week(number: int, helpful: tuple[float, float, float], shuffled: list[float]) -> dict[str, Any]:
    def entry(accuracy: float, low: float, high: float) -> dict[str, Any]:
        return {"accuracy": accuracy, "ci": [low, high], "n": 100}

    sources = {hh_weeks.HELPFUL: entry(*helpful)}
    return {
        "week": number,
        "state": "refused",
        "num_train": 10,
        "dropped_too_long": 1,
        "excluded": {"none_tie": 2},
        "held_out": {
            "by_source": sources,
            "longer_wins": {"by_source": {hh_weeks.HELPFUL: entry(0.62, 0.6, 0.64)}},
            "length_regressed": {"by_source": {hh_weeks.HELPFUL: entry(0.55, 0.53, 0.57)}},
        },
        "shuffled": [{"by_source": {hh_weeks.HELPFUL: entry(share, 0, 1)}} for share in shuffled],
    }


def test_the_interval_of_the_controls_is_over_models() -> None:
    # Standard deviation 0.1, three models: 4.303 * 0.1 / sqrt(3) = 0.2484.
    mean, (low, high) = hh_weeks.mean_of_models([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5)
    assert (low, high) == (pytest.approx(0.5 - 0.2484, abs=1e-4), pytest.approx(0.5 + 0.2484, abs=1e-4))
    assert hh_weeks.mean_of_models([0.7]) == (0.7, (0.0, 1.0))


def test_both_weeks_must_lie_above_a_half_and_shuffled_labels_at_chance() -> None:
    good = week(1, (0.6, 0.58, 0.62), [0.45, 0.5, 0.55])
    assert hh_weeks.shortcomings([good, good | {"week": 2}]) == []
    assert "week 2: the helpful interval" in hh_weeks.shortcomings([good, week(2, (0.51, 0.5, 0.52), [])])[0]
    # 0.60, 0.61, 0.62: 0.61 ± 4.303 * 0.01 / sqrt(3) = 0.025 does not hold 0.5.
    assert "not at chance: 0.610" in hh_weeks.shortcomings([week(1, (0.6, 0.58, 0.62), [0.6, 0.61, 0.62])])[0]


def test_the_table_has_a_row_per_week_and_source() -> None:
    lines = hh_weeks.table([week(1, (0.6, 0.58, 0.62), [0.4, 0.5, 0.6])]).splitlines()
    assert lines[2] == (
        "| 1 | hh_helpful_single_turn | 100 | 0.600 [0.580, 0.620] | 0.620 [0.600, 0.640] | 0.550 [0.530, 0.570] | "
        "0.500 [0.252, 0.748] of 0.400, 0.500, 0.600 |"
    )
    assert lines[4].startswith(
        "Week 1: 10 comparisons trained on, 1 too long, left out {'none_tie': 2}; cycle refused."
    )
