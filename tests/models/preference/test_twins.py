"""The split between a preference model and its watcher, and what it costs, against arithmetic by hand."""

import hashlib
import json
import math

import pytest

from models.jobs.train_preference_model import run
from models.preference.settings import PreferenceModelSettings
from models.preference.twins import PAPER_SLOPE, cost_of_a_part, part_of
from models.runtime.job import Job, JobError
from tests.models.preference_world import polite_comparisons, write_comparison_set

KEYS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]
# Standard error of a share of 4,000: at most 0.008; three of them.
SHARE_TOLERANCE = 0.024
ROUNDING = 1e-12


def test_the_parts_are_disjoint_and_of_the_named_shares():
    for twin, share in (("halves", 0.50), ("holdout", 0.35)):
        watched = [key for key in KEYS if part_of(key, twin) == "watcher"]
        assert len(watched) / len(KEYS) == pytest.approx(share, abs=SHARE_TOLERANCE)
    assert {part_of(key, "off") for key in KEYS} == {"production"}


def test_the_second_hash_knows_nothing_of_the_first():
    # Held out are keys whose own first 32 bits are small; among those that are not, the shares must be the same.
    low = [key for key in KEYS if int(key[:8], 16) < 16**8 // 4]
    assert sum(part_of(key, "halves") == "watcher" for key in low) / len(low) == pytest.approx(0.5, abs=0.05)


def test_a_key_keeps_its_part_and_a_smaller_share_is_within_a_larger_one():
    # sha256("twin/a") begins 0xfa7d8e60, a fraction of 0.978: above both shares.
    assert part_of("a", "halves") == part_of("a", "holdout") == "production"
    for key in KEYS[:500]:
        if part_of(key, "holdout") == "watcher":
            assert part_of(key, "halves") == "watcher"


def test_the_cost_by_hand():
    # Of four comparisons production orders three rightly, the watcher two: 0.75 and 0.5. With 650 and 350 trained on
    # the slope is 0.25 / ln(650/350) = 0.25 / 0.6190392 = 0.4038517, and the cost of the missing 350
    # 0.4038517 · ln(1000/650) = 0.4038517 · 0.4307829 = 0.1739724.
    production = {"a": 1.0, "b": 1.0, "c": 1.0, "d": -1.0}
    watcher = {"a": 2.0, "b": 1.0, "c": -1.0, "d": -3.0, "elsewhere": 1.0}
    found = cost_of_a_part(production, watcher, 650, 350)
    assert found.n == 4
    assert (found.production_accuracy, found.watcher_accuracy) == (0.75, 0.5)
    assert found.slope_per_ln_comparisons == pytest.approx(0.4038517, abs=1e-6)
    assert found.cost == pytest.approx(0.1739724, abs=1e-6)
    # Differences 0, 0, 1, 0: mean 0.25, deviation 0.5, error 0.25, Student's t of 3 is 3.1824: half width 0.7956.
    scale = math.log(1000 / 650) / math.log(650 / 350)
    assert found.cost_ci == pytest.approx([(0.25 - 0.7956) * scale, (0.25 + 0.7956) * scale], abs=1e-4)


def test_the_costs_interval_heeds_dialogues():
    production, watcher = {"a": 1.0, "b": 1.0, "c": 1.0, "d": -1.0}, {"a": 2.0, "b": 1.0, "c": -1.0, "d": -3.0}
    dialogues = {"a": 0, "b": 0, "c": 1, "d": 1}
    # Differences 0, 0 | 1, 0: sums of errors −0.5 and 0.5, 2/1 · 0.5 = 1, error 1/4, Student's t of 1 is 12.706.
    scale = math.log(1000 / 650) / math.log(650 / 350)
    found = cost_of_a_part(production, watcher, 650, 350, dialogues)
    assert found.cost_ci == pytest.approx([(0.25 - 3.1766) * scale, (0.25 + 3.1766) * scale], abs=1e-3)


def test_equal_parts_take_the_papers_slope():
    # ln(1000/500) = 0.693147 at 0.015 per unit is 1.04 points.
    found = cost_of_a_part({"a": 1.0}, {"a": 0.0}, 500, 500)
    assert found.watcher_accuracy == 0.5
    assert found.cost == pytest.approx(PAPER_SLOPE * math.log(2), abs=ROUNDING)
    assert found.cost_ci is None


def test_models_that_scored_nothing_in_common_are_an_error():
    with pytest.raises(ValueError, match="in common"):
        cost_of_a_part({"a": 1.0}, {"b": 1.0}, 2, 1)


def test_production_and_watcher_share_no_dialogue_and_the_watcher_tells_the_cost(policy_dir, tmp_path):
    records = polite_comparisons(60, 20)
    for number, record in enumerate(records):
        record["split_key"] = KEYS[number]
    comparisons = write_comparison_set(tmp_path / "set", records)
    watched = sum(part_of(KEYS[number], "holdout") == "watcher" for number in range(60))

    def train(part, **inputs):
        spec = {
            "inputs": {"initial": str(policy_dir), "comparisons": str(comparisons)} | inputs,
            "settings": {"twin": "holdout", "part": part, "batch_pairs": 16},
        }
        (tmp_path / part).mkdir()
        run(Job(spec, tmp_path / part))
        return json.loads((tmp_path / part / "result" / "results.json").read_text())

    production = train("production")
    assert production["num_train"] == 60 - watched
    assert production["twin"] == {"twin": "holdout", "part": "production"}
    watcher = train("watcher", production=str(tmp_path / "production" / "result"))
    assert watcher["num_train"] == watched
    told = watcher["twin"]
    assert (told["num_production"], told["num_watcher"], told["n"]) == (60 - watched, watched, 20)
    # The held-out part is whole for both, and the figures are those of the two reports.
    assert told["production_accuracy"] == pytest.approx(production["held_out"]["accuracy"])
    assert told["watcher_accuracy"] == pytest.approx(watcher["held_out"]["accuracy"])


def test_a_set_without_split_keys_cannot_be_shared(policy_dir, tmp_path):
    comparisons = write_comparison_set(tmp_path / "set", polite_comparisons(4, 2))
    spec = {
        "inputs": {"initial": str(policy_dir), "comparisons": str(comparisons)},
        "settings": {"twin": "halves"},
    }
    with pytest.raises(JobError, match="no split_key"):
        run(Job(spec, tmp_path))


def test_a_watcher_without_twins_is_refused():
    with pytest.raises(ValueError, match="needs twin"):
        PreferenceModelSettings(part="watcher")
