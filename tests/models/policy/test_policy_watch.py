"""PPO under watch: a tripped wire stops the job with its reason and the last good weights, also after a kill."""

import json
import random
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file

from models.jobs import train_policy
from models.policy.results import PPOResult
from models.policy.settings import WatchSettings
from models.runtime.job import Job, JobError
from models.runtime.results import result_from_json
from orchestrator.reports.stops import kept_iterations
from tests.models.marked_words import write_prompts, write_scorer
from tests.models.preference_world import comparison, polite_comparisons, write_comparison_set

TWIN = {"iterations": 10, "watch": {"max_twin_gap": 0.2}, "prompts_per_iteration": 32}
QUICK = {"learning_rate": 3e-3, "prompts_per_iteration": 16, "minibatch_replies": 8, "max_reply_tokens": 8}
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def scorer_dir(policy_dir, tmp_path_factory):
    return write_scorer(policy_dir, tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def opposite_dir(policy_dir, tmp_path_factory):
    """A preference model that likes exactly what the other dislikes."""
    return write_scorer(policy_dir, tmp_path_factory.mktemp("opposite"), sign=-1.0)


@pytest.fixture(scope="module")
def prompts_dir(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture
def train(policy_dir, scorer_dir, prompts_dir, tmp_path):
    """Runs the job in this process: train(name="run", watcher=..., comparisons=..., **settings) -> its directory."""

    def start(name="run", *, seed=0, watcher=None, comparisons=None, **settings):
        inputs = {"initial": policy_dir, "preference_model": scorer_dir, "prompts": prompts_dir}
        inputs |= {} if watcher is None else {"watcher": watcher}
        inputs |= {} if comparisons is None else {"comparisons": comparisons}
        spec = {
            "job": "train_policy",
            "inputs": {role: str(path) for role, path in inputs.items()},
            "settings": QUICK | settings,
            "seed": seed,
            "device": "cpu",
        }
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        job = Job(spec, out)
        job.prepare_process()
        train_policy.run(job)
        return out

    yield start
    torch.use_deterministic_algorithms(False)


def results(out):
    return json.loads((out / "result" / "results.json").read_text())


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_watcher_that_agrees_has_no_gap_and_one_that_objects_stops_the_run(train, scorer_dir, opposite_dir):
    agreeing = train("agreeing", watcher=scorer_dir, iterations=4)
    assert [line["watch/twin_gap"] for line in metrics(agreeing)] == pytest.approx([0.0] * 4, abs=ROUNDING)
    assert results(agreeing)["watch"]["alarms"] == []

    stopped = train("stopped", watcher=opposite_dir, **TWIN)
    numbers = results(stopped)
    assert numbers["watch"]["stopped_by"] == "twin_gap"
    assert "above max_twin_gap 0.2 (iteration" in numbers["stopped"]
    # The watcher's score is the training PM's with the other sign: the gap is twice the gain.
    curve = numbers["curve"]
    for point in curve:
        assert point["twin_gap"] == pytest.approx(2 * (point["score"] - curve[0]["score"]), abs=1e-4)
    # Two rollouts in a row were beyond the wire; the weights that are kept wrote the one before them.
    tripped = [alarm["iteration"] for alarm in numbers["watch"]["alarms"]][-2:]
    assert tripped[1] == tripped[0] + 1 == len(curve) + 1
    # The rollout that tripped the wire is logged with its numbers, and no other line has a reason.
    *learned, last = metrics(stopped)
    assert (last["step"], last["stopped"]) == (tripped[1], numbers["stopped"])
    assert last["watch/twin_gap"] > 0.2
    assert last["watch/wires_beyond"] == 1.0
    assert not any("stopped" in line for line in learned)
    assert json.loads((stopped / "run.json").read_text())["stopped"] == numbers["stopped"]
    shorter = train("shorter", **TWIN | {"iterations": tripped[0] - 2})
    kept, expected = (load_file(out / "result" / "model.safetensors") for out in (stopped, shorter))
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    run = result_from_json(PPOResult, numbers, where="the stopped run")
    assert kept_iterations(run) == tripped[0] - 2


def test_watching_changes_no_weight(train, opposite_dir, tmp_path):
    comparisons = write_comparison_set(tmp_path / "comparisons", polite_comparisons(4, 6))
    off = {field.name: 0.0 for field in fields(WatchSettings) if field.name.startswith(("max_", "min_", "impossible_"))}
    off["max_recoveries"] = 0
    plain = train("plain", iterations=2)
    watched = train("watched", iterations=2, watcher=opposite_dir, comparisons=comparisons, watch=off)
    weights = [(out / "result" / "model.safetensors").read_bytes() for out in (plain, watched)]
    assert weights[0] == weights[1]


def test_learning_that_explodes_goes_back_to_the_weights_before_it(train):
    out = train(iterations=5, learning_rate=0.3, watch={"max_ratio_error": 0.3, "patience": 1, "max_recoveries": 0})
    numbers = results(out)
    assert numbers["watch"]["stopped_by"] in ("ratio", "clip_fraction")
    assert numbers["watch"]["alarms"][-1]["iteration"] == 1
    [line] = metrics(out)
    assert (line["step"], line["stopped"]) == (1, numbers["stopped"])
    assert line["watch/ratio_error"] > 0.3
    assert numbers["kl_nats"] == 0.0  # the first steps were given up: the snapshot is the initial policy


def test_mean_log_p_accuracy_is_measured_on_the_way_with_the_ceiling_beside_it(train, tmp_path):
    generator = random.Random(5)
    harmless = [comparison(100 + i, "held_out", generator, question="harmless") for i in range(3)]
    comparisons = write_comparison_set(tmp_path / "comparisons", [*polite_comparisons(4, 6), *harmless])
    out = train(comparisons=comparisons, iterations=5, logp_every=2, logp_pairs=4, learning_rate=0.0)
    found = results(out)["logp_accuracy"]
    assert found["pairs"] == {"helpful": 4, "harmless": 3}
    assert [point["samples"] for point in found["curve"]] == [
        0,
        32,
        64,
        80,
    ]  # before iterations 1, 3, 5, and at the end
    # Weights stand still, and so does the number.
    assert len({(point["helpful"], point["harmless"]) for point in found["curve"]}) == 1
    assert set(found["preference_model"]) == set(found["preference_model_ci"]) == {"helpful", "harmless"}
    for point in found["curve"]:
        for kind, (low, high) in point["ci"].items():
            assert low <= point[kind] <= high
    lines = metrics(out)
    assert ["watch/logp_accuracy_helpful" in line for line in lines] == [True, False, True, False, True]
    assert lines[0]["watch/logp_accuracy_harmless"] == found["curve"][0]["harmless"]


def test_a_comparison_set_that_is_none_is_a_persons_mistake(train, prompts_dir):
    with pytest.raises(JobError, match=r"has no manifest\.json"):
        train(comparisons=prompts_dir, iterations=1)


def test_an_unknown_wire_is_an_error_that_names_the_known_ones(train):
    with pytest.raises(JobError, match=r"Unknown setting 'max_gap' in WatchSettings\. Known: .*max_twin_gap"):
        train(watch={"max_gap": 1.0})


def test_a_killed_run_is_stopped_in_the_same_iteration(train, opposite_dir, monkeypatch):
    # Entropy falls a little with every iteration; beyond 0.99 of the start's for the second time the run stops.
    wires = {"min_entropy_share": 0.99, "max_recoveries": 0}
    settings = {"watcher": opposite_dir, "iterations": 10, "watch": wires, "checkpoint_every": 1}
    whole = train("whole", seed=2, prompts_per_iteration=32, **settings)
    first, second = (alarm["iteration"] for alarm in results(whole)["watch"]["alarms"])
    assert (results(whole)["watch"]["stopped_by"], second) == ("entropy", first + 1)
    # Killed after the checkpoint between the two, so that the first alarm must have been remembered.
    save = Job.save_checkpoint

    def killed(job, step, state):
        save(job, step, state)
        if step == first:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train("killed", seed=2, prompts_per_iteration=32, **settings)
    again = train("killed", seed=2, prompts_per_iteration=32, **settings)
    assert json.loads((again / "run.json").read_text())["resumed_at_step"] == first
    names = sorted(path.name for path in (whole / "result").iterdir())
    different = [n for n in names if (whole / "result" / n).read_bytes() != (again / "result" / n).read_bytes()]
    assert different == []
    timeless = [
        [{key: value for key, value in line.items() if key != "eps" and "perf/" not in key} for line in metrics(out)]
        for out in (whole, again)
    ]
    assert timeless[0] == timeless[1]
    assert timeless[0][-1]["stopped"] == results(whole)["stopped"]


def test_the_last_rollout_tells_why_it_was_given_up(train):
    out = train(iterations=1, max_kl_nats=1e-6)
    last = metrics(out)[-1]
    assert (last["step"], last["stopped"]) == (2, results(out)["stopped"])
    assert "above max_kl_nats 1e-06 in iteration 2" in last["stopped"]
    assert last["objective/kl"] > 1e-6
