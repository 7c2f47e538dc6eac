"""What PPO and evaluations publish: results of version 1 are read whole, and what is written is what is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.policy.results import CurvePoint, Evaluation, JudgedReply, PPOResult
from models.runtime.results import ResultError, part_to_json, result_from_json, result_to_json

# As a cycle at 591480d published them, before results had a version.
VERSION_1: dict[str, Any] = json.loads((Path(__file__).parent / "results_of_version_1.json").read_text())
PUBLISHED = (("train_policy", PPOResult), ("evaluate", Evaluation), ("reply", JudgedReply))


@pytest.mark.parametrize(("name", "cls"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_everything_in_results_of_version_1_is_read(name: str, cls: type) -> None:
    found = result_from_json(cls, VERSION_1[name], where=name)
    # Nothing is passed over and no name differs: written again, it is the same object.
    assert json.loads(json.dumps(part_to_json(found))) == VERSION_1[name]


def test_a_ppo_run_of_version_1_has_its_curve_its_watch_and_its_snapshots() -> None:
    run = result_from_json(PPOResult, VERSION_1["train_policy"], where="the run")
    assert [point.samples for point in run.curve] == [0, 16, 32, 48]
    assert run.curve[-1].twin_gap == 0.4468045439571142
    assert (run.samples, run.optimiser_steps, run.stopped) == (64, 16, None)
    assert (run.learning_rate, run.fixed_kl_coef) == (0.001, 0.02)
    assert replace(run, settings={"kl_coef": 0.02, "kl_target_nats": 1.0}).fixed_kl_coef is None
    assert run.watch is not None
    assert run.watch.end is not None
    assert (run.watch.stopped_by, run.watch.alarms, run.watch.end.twin_gap) == (None, (), 0.5764556564390659)
    assert run.logp_accuracy is not None
    assert run.logp_accuracy.curve[0].by_kind == {"helpful": 0.875, "harmless": 0.0}
    assert run.snapshots is not None
    first = run.snapshots[0]
    assert first.folder == "snapshots/01"
    # The snapshot is the point of the curve at which it was kept.
    assert first.point == run.curve[1]


def test_an_evaluation_of_version_1_has_its_kinds_and_its_points() -> None:
    found = result_from_json(Evaluation, VERSION_1["evaluate"], where="the evaluation")
    assert found.of_ordinary_requests is not None
    assert found.of_ordinary_requests.num_prompts == 5
    assert found.best_of_points is not None
    assert [(point.k, point.num_prompts) for point in found.best_of_points] == [(1, 8), (2, 8), (4, 8)]
    assert found.collapse is not None
    assert found.collapse.stock_reply_text is None


@pytest.mark.parametrize(("name", "cls"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_what_is_written_is_what_is_read(name: str, cls: type) -> None:
    found = result_from_json(cls, VERSION_1[name], where=name)
    written = json.loads(json.dumps(result_to_json(found)))
    assert written == VERSION_1[name] | {"version": 2}
    assert result_from_json(cls, written, where=name) == found


def test_results_of_before_there_was_a_watch_are_read() -> None:
    early = {"optimiser_steps": 1, "samples": 8, "kl_nats": 1, "score_start": None, "score_end": 2}
    run = result_from_json(PPOResult, early, where="an early run")
    assert (run.watch, run.logp_accuracy, run.snapshots, run.curve, run.learning_rate) == (None, None, None, (), None)
    score = {"pm_score": 1.0, "pm_score_ci": [None, None], "kl_nats": 0.0}
    found = result_from_json(Evaluation, score, where="an early evaluation")
    assert (found.collapse, found.by_kind, found.best_of, found.of_ordinary_requests) == (None, {}, 1, None)


def test_a_misspelt_key_is_named_with_its_path() -> None:
    misspelt = [{"samples": 0, "kl_nats": 0.0, "scores": 1.0}]
    with pytest.raises(ResultError, match=r"^the run have no `curve\[0\]\.score`; found kl_nats, samples, scores\."):
        result_from_json(PPOResult, VERSION_1["train_policy"] | {"curve": misspelt}, where="the run")
    # One that a later version adds is none of ours.
    point = result_from_json(CurvePoint, {"samples": 0, "kl_nats": 0.0, "score": 1.0, "since": 3}, where="a point")
    assert point == CurvePoint(samples=0, kl_nats=0.0, score=1.0)
