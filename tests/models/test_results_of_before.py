"""Results that jobs of 591480d wrote, before results had a version, are read whole; what is wrong in them is named.

The files are as the jobs left them: tiny models, trained on tests/models/preference_world.py in two parts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.detectors.results import DetectorResults
from models.initial_policy.results import (
    DistillationCourse,
    DistillationSetResults,
    DistilledResults,
    PreparedResults,
    PretrainedResults,
)
from models.preference.results import (
    Accuracy,
    ModelSummary,
    Offset,
    OrderedPairs,
    PreferenceModelResults,
    TwinPart,
    WatcherPart,
)
from models.runtime.results import VERSION, VERSION_KEY, ResultError, result_from_json, result_to_json

FOLDER = Path(__file__).parent / "results_of_591480d"
WHERE = "the results of artifact 41"


def published(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def model_of(results: dict[str, Any]) -> PreferenceModelResults:
    return result_from_json(PreferenceModelResults, results, where=WHERE)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (PreferenceModelResults, "preference_model"),
        (PreferenceModelResults, "watcher"),
        (OrderedPairs, "ordered_pairs"),
        (DetectorResults, "detector"),
        (PreparedResults, "prepared"),
        (PretrainedResults, "pretrained"),
        (DistillationSetResults, "distillation_set"),
        (DistilledResults, "distilled"),
    ],
)
def test_what_was_written_before_is_read_and_would_be_written_again_but_for_the_version(cls: type, name: str) -> None:
    before = published(name)
    assert VERSION_KEY not in before
    read = result_from_json(cls, before, where=WHERE)
    written = json.loads(json.dumps(result_to_json(read)))
    assert written == before | {VERSION_KEY: VERSION}
    assert result_from_json(cls, written, where=WHERE) == read


def test_the_figures_of_a_preference_model_of_before() -> None:
    # Of 64 comparisons about 35 % are the watcher's; of 40 held out one is a tie, and two are ordered wrongly.
    model = model_of(published("watcher"))
    assert (model.num_train, model.num_held_out, model.trained_on) == (19, 39, ("harmless", "helpful"))
    held_out = model.held_out
    assert (held_out.accuracy, held_out.n, held_out.dialogues, held_out.design_effect) == (37 / 39, 39, 39, 1.0)
    assert held_out.by_question["harmless"].accuracy == 1.0
    assert set(held_out.by_rater) == {"0", "1", "2"}
    calibration = held_out.calibration
    assert calibration is not None
    assert [bin_.n for bin_ in calibration.bins] == [39]
    assert calibration.by_score_band == {}
    assert held_out.threshold_curve is not None
    assert held_out.threshold_curve.all[0].n == 39
    assert held_out.histograms is not None
    assert sum(held_out.histograms.all.better) == 39
    assert all(mistake.gap == mistake.better_score - mistake.worse_score < 0 for mistake in held_out.mistakes)
    assert len(held_out.mistakes) == 2
    assert model.reference is not None
    assert model.over_reference_set == model.offset
    assert (model.lora, model.skills) == (None, None)


def test_a_twin_knows_its_part_and_a_watcher_what_the_split_costs() -> None:
    production, watcher = model_of(published("preference_model")), model_of(published("watcher"))
    assert production.twin == TwinPart(twin="holdout", part="production")
    twin = watcher.twin
    assert isinstance(twin, WatcherPart)
    assert (twin.num_production, twin.num_watcher) == (production.num_train, watcher.num_train) == (44, 19)
    assert twin.production_share == 44 / 63
    # All 39 and 37 of 39 are ordered rightly: 2/39 / ln(44/19) = 0.06107, times ln(63/44) = 0.35895.
    assert twin.cost == pytest.approx(0.021921, abs=1e-5)
    assert twin.cost_ci is not None
    # The tie of the training part fell to the production model, which leaves ties out.
    assert production.ties is not None
    assert (production.ties.train, production.ties.left_out, production.ties.held_out) == (0, 1, 1)


def test_a_distillation_of_before_has_its_course() -> None:
    course = result_from_json(DistillationCourse, published("distilled"), where=WHERE)
    assert course.distillation_curve[0].train_kl_nats is None
    assert course.distillation_curve[-1].held_out_kl_nats == course.held_out_kl_after < course.held_out_kl_before
    assert course.distillation_curve[-1].tokens == course.num_tokens == 1515


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("held_out", "accuracy"), "have no `held_out.accuracy`"),
        (("held_out", "calibration", "slope"), "have no `held_out.calibration.slope`"),
        (("held_out", "by_source", "world", "ci"), "have no `held_out.by_source.world.ci`"),
        (("ties", "left_out"), "have no `ties.left_out`"),
        (("reference", "sha256"), "have no `reference.sha256`"),
    ],
)
def test_a_misspelt_key_is_named_with_its_path(path: tuple[str, ...], message: str) -> None:
    results = published("preference_model")
    part = results
    for key in path[:-1]:
        part = part[key]
    part[path[-1] + "s"] = part.pop(path[-1])
    with pytest.raises(ResultError) as error:
        model_of(results)
    assert str(error.value).startswith(f"{WHERE} {message}; found ")


def test_what_older_models_did_not_measure_is_none() -> None:
    """Models of before 591480d that such a home may hold: no dialogues, no reference set, no calibration, no mix."""
    accuracy = {"accuracy": 0.75, "ci": [0.5, 0.9], "n": 16}
    old: dict[str, Any] = {
        "num_train": 64,
        "num_held_out": 16,
        "dropped_too_long": 0,
        "max_tokens": 512,
        "optimiser_steps": 4,
        "train_loss": 0.6,
        "offset": 1.25,
        "choices": {},
        "held_out": accuracy | {"by_source": {"world": accuracy}, "by_question": {"helpful": accuracy}},
    }
    model = model_of(old)
    assert model.held_out.by_source["world"] == Accuracy(accuracy=0.75, ci=(0.5, 0.9), n=16)
    assert (model.held_out.dialogues, model.held_out.design_effect) == (None, 1.0)
    assert (model.held_out.calibration, model.held_out.histograms, model.held_out.mistakes) == (None, None, ())
    assert (model.trained_on, model.num_parameters, model.twin) == (None, None, None)
    # An offset of before there were reference sets is none that another model's can be compared with.
    assert (model.offset, model.over_reference_set) == (1.25, None)
    assert result_from_json(Offset, {}, where=WHERE).over_reference_set is None
    assert result_from_json(ModelSummary, old, where=WHERE) == ModelSummary(num_train=64, held_out=model.held_out)
    # A part that is there must be whole; null is as good as not there.
    assert model_of(old | {"reference": None, "ties": None}) == replace(model, reference=None)
