"""When a sign counts as wrong, on numbers worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.preference.results import Accuracy, HeldOutReport, OrderedPairs
from models.statistics.intervals import wilson
from orchestrator.config import OrientationSection, load_config
from orchestrator.data.pair_set import SHIPPED, orientation_pairs, write_orientation_pairs
from orchestrator.judging.orientation import wrong_signs
from tests.paths import EXAMPLES


def ordered(right: int, n: int) -> Accuracy:
    return Accuracy(accuracy=right / n, ci=wilson(right, n), n=n)


def held_out(**by_source: tuple[int, int]) -> HeldOutReport:
    return HeldOutReport(
        **vars(ordered(16, 20)),
        by_source={source: ordered(*counts) for source, counts in by_source.items()},
        by_question={"helpful": ordered(8, 10), "harmless": ordered(8, 10)},
    )


def orientation(helpful: tuple[int, int], harmless: tuple[int, int]) -> OrderedPairs:
    both = ordered(helpful[0] + harmless[0], helpful[1] + harmless[1])
    by_question = {"helpful": ordered(*helpful), "harmless": ordered(*harmless)}
    return OrderedPairs(**vars(both), by_question=by_question, by_source={"hand": both})


def test_all_in_order_is_nothing_to_say():
    assert wrong_signs(held_out(a=(70, 100), b=(55, 100)), orientation((9, 10), (8, 10)), "pairs.jsonl") == []
    assert wrong_signs(held_out(a=(70, 100)), None, None) == []


def test_one_question_the_wrong_way_round_is_seen_though_all_together_are_at_chance():
    # 10 of 10 and 0 of 10 are 10 of 20 together, interval 0.30 to 0.70; 0 of 10 alone is 0 to 0.28.
    [found] = wrong_signs(held_out(), orientation((10, 10), (0, 10)), "pairs.jsonl")
    assert found.startswith("of the 10 harmless orientation pairs of pairs.jsonl")
    assert "0% rightly, interval [0.00, 0.28]" in found


def test_a_question_that_the_model_never_saw_is_not_judged_alone():
    helpful_only = replace(held_out(), by_question={"helpful": ordered(8, 10)})
    assert wrong_signs(helpful_only, orientation((10, 10), (0, 10)), "pairs.jsonl") == []


def test_a_source_that_contradicts_the_others_is_named():
    # 30 of 100 has its 99.9 % interval below one half (to 0.47), 36 of 100 has not (to 0.52), though its 95 % one has.
    [found] = wrong_signs(held_out(good=(70, 100), turned=(30, 100)), None, None)
    assert "held-out comparisons of source 'turned' it orders 30% rightly" in found
    assert wrong_signs(held_out(good=(70, 100), turned=(30, 100)), None, None, sources=False) == []
    assert wilson(36, 100)[1] < 0.5
    assert wrong_signs(held_out(good=(70, 100), unlucky=(36, 100)), None, None) == []
    # The same 30 of 100 out of 25 dialogues that go together are as 30 % of 25, which is no proof.
    together = replace(ordered(30, 100), dialogues=25, design_effect=4.0)
    report = replace(held_out(), by_source={"good": ordered(70, 100), "turned": together})
    assert wrong_signs(report, None, None) == []


def test_the_shipped_pairs_are_read_and_their_length_tells_nothing(tmp_path):
    assert write_orientation_pairs(SHIPPED, tmp_path)["num_pairs"] == 40
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    for question in ("helpful", "harmless"):
        mine = [pair for pair in pairs if pair["question"] == question]
        longer = sum(len(pair["better"][-1]["content"]) > len(pair["worse"][-1]["content"]) for pair in mine)
        assert (len(mine), longer) in ((20, 10), (20, 11))
    assert len({pair["prompt"][0]["content"] for pair in pairs}) == 40


@pytest.mark.parametrize("name", ["local.toml", "hh.toml"])
def test_an_example_is_checked_with_the_shipped_pairs(name, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_DATA", "/data")
    assert orientation_pairs(load_config(EXAMPLES / name).orientation) == SHIPPED


def test_pairs_of_ones_own_take_the_place_of_the_shipped_ones_which_can_be_turned_off():
    assert orientation_pairs(OrientationSection()) == SHIPPED
    assert orientation_pairs(OrientationSection(shipped=False)) is None
    for shipped in (True, False):
        assert orientation_pairs(OrientationSection(file="/mine.jsonl", shipped=shipped)) == Path("/mine.jsonl")


def test_the_shipped_pairs_must_be_surer_than_pairs_of_ones_own():
    # Together 9 of 40 have a 99.9 % interval to 0.49, 10 of 40 to 0.51. Of pairs of one's own 13 of 40 are enough.
    [found] = wrong_signs(held_out(), orientation((4, 20), (5, 20)), None)
    assert found.startswith(
        "of the 40 orientation pairs that come with the orchestrator the preference model orders 22%"
    )
    assert "interval [0.08, 0.49], below one half at 99.9%" in found
    assert "orientation.shipped = false" in found
    assert wrong_signs(held_out(), orientation((5, 20), (5, 20)), None) == []
    assert len(wrong_signs(held_out(), orientation((6, 20), (7, 20)), "pairs.jsonl")) == 1
    # Of one question: 2 of 20 to 0.47, 3 of 20 to 0.52.
    [found] = wrong_signs(held_out(), orientation((19, 20), (2, 20)), None)
    assert found.startswith("of the 20 harmless orientation pairs that come with the orchestrator")
    assert wrong_signs(held_out(), orientation((19, 20), (3, 20)), None) == []
