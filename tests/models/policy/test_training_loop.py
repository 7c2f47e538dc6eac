"""The loop around PPO's steps: whose prompts and random numbers, what is measured, where a run stops, what it says."""

from __future__ import annotations

import json

import pytest

from models.chat.format import ChatFormat
from models.policy import training as loop
from models.policy.results import PPOResult
from models.policy.rollout import RolloutCollector
from models.policy.settings import PPOSettings
from models.policy.training import PolicyTraining
from models.runtime.job import Job, JobError
from models.runtime.random_numbers import derive_seed
from models.runtime.results import result_from_json
from models.runtime.settings import settings_from
from tests.models.marked_words import write_prompts
from tests.models.ppo_runs import metrics, ppo_job, results, run_ppo

FAR = 0.3  # a learning rate at which log-probs move by 3 nats a token in the first round
SIZE, CAP = 16, 8


@pytest.fixture
def listening(monkeypatch):
    """What the collector was asked and gave back, of every rollout of the runs that follow."""
    heard = {"prompts": [], "params": [], "gaps": []}
    sample, measure = RolloutCollector.sample, RolloutCollector.measure

    def sampled(self, prompts, params):
        heard["prompts"].append([prompt.id for prompt in prompts])
        heard["params"].append(list(params))
        return sample(self, prompts, params)

    def measured(self, *args, **kwargs):
        rollout = measure(self, *args, **kwargs)
        heard["gaps"].append(float(rollout.sampler_gaps.max()))
        return rollout

    monkeypatch.setattr(RolloutCollector, "sample", sampled)
    monkeypatch.setattr(RolloutCollector, "measure", measured)
    return heard


def test_each_rollout_has_its_prompts_and_its_random_numbers_and_the_newest_weights(train, listening):
    out = train(iterations=3, seed=7, learning_rate=3e-3)
    run = result_from_json(PPOResult, results(out), where="the run")
    # Sampling is purpose 0 of the seed and measuring purpose 3: other numbers would be other results for a known seed.
    purposes = [(0, 0), (0, 1), (0, 2), (3,)]
    for params, purpose in zip(listening["params"], purposes, strict=True):
        rollout_seed = derive_seed(7, *purpose)
        assert [one.seed for one in params] == [derive_seed(rollout_seed, place) for place in range(SIZE)]
        assert {(one.max_tokens, one.temperature) for one in params} == {(CAP, 1.0)}
    # Passes over 12 prompts, 4 of them harmless: three rollouts of 16 are four passes over all of them. A third is due
    # to be harmless, so each comes four times.
    first, second, third, last = listening["prompts"]
    counts = [(first + second + third).count(id) for id in set(first + second + third)]
    assert sorted(counts) == [4] * 12
    assert last == first
    # The sampler has the weights that are read, at the end too: float32 rounds by less than 1e-4 nats.
    assert all(gap < 1e-4 for gap in listening["gaps"])
    assert len(listening["gaps"]) == 4
    lines = metrics(out)
    assert [point.kl_coef for point in run.curve] == [line["kl_coef"] for line in lines]
    assert run.kl_coef_end == lines[-1]["kl_coef"] == PPOSettings.kl_coef
    assert run.truncated is not None
    assert 0 < run.truncated <= 1


def test_a_followed_kl_is_followed_to_the_end(train):
    out = train(iterations=3, kl_target_nats=0.5, kl_horizon_samples=200)
    run = result_from_json(PPOResult, results(out), where="the run")
    coefs = [line["kl_coef"] for line in metrics(out)]
    assert [point.kl_coef for point in run.curve] == coefs
    assert len(set(coefs)) > 1
    # The last rollout moved it once more.
    assert run.kl_coef_end is not None
    assert run.kl_coef_end != coefs[-1]


def test_a_leap_in_the_last_round_ends_the_run_and_is_no_recovery(train):
    # Nothing would be learned any more with the smaller step.
    run = result_from_json(PPOResult, results(train(iterations=1, learning_rate=FAR, watch={"patience": 1})), where="")
    assert run.recoveries is None
    assert run.stopped is not None
    assert run.kept_iteration == 0


def test_the_point_of_the_good_weights_stays_when_the_run_goes_back(train):
    out = train(iterations=3, learning_rate=FAR, watch={"patience": 1, "recovery_rate": 0.01})
    run, lines = result_from_json(PPOResult, results(out), where="the run"), metrics(out)
    assert run.recoveries is not None
    # Both rollouts are of the start's weights; the curve has the first.
    assert lines[0]["objective/scores"] != lines[1]["objective/scores"]
    assert run.curve[0].score == lines[0]["objective/scores"]


def test_a_rollout_that_is_given_up_says_what_the_wires_saw(train):
    out = train(iterations=15, max_kl_nats=1.0, learning_rate=3e-4)
    last = metrics(out)[-1]
    assert "above max_kl_nats 1" in last["stopped"]
    assert "lr" not in last
    assert last["watch/entropy_share"] > 0


def test_a_checkpoint_of_before_there_were_recoveries_knows_which_weights_are_good(train, monkeypatch):
    kls = [line["objective/kl"] for line in metrics(train("free", iterations=4, learning_rate=1e-3))]
    assert kls[2] < kls[3]
    # Goes on from the third checkpoint; the fourth rollout is beyond the limit, and the weights before it are kept.
    settings = {"iterations": 5, "learning_rate": 1e-3, "max_kl_nats": (kls[2] + kls[3]) / 2, "checkpoint_every": 3}
    whole = train("whole", **settings)
    save = Job.save_checkpoint

    def older(job, step, state):
        watch = {name: value for name, value in state["monitor"]["watch"].items() if name != "learning_in_a_row"}
        kept = {name: value for name, value in state.items() if name not in ("kept", "recoveries", "rate_factor")}
        save(job, step, kept | {"good": state["good"].value["policy"], "monitor": state["monitor"] | {"watch": watch}})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "save_checkpoint", older)
        with pytest.raises(KeyboardInterrupt):
            train("killed", **settings)
    again = train("killed", **settings)
    assert json.loads((again / "run.json").read_text())["resumed_at_step"] == 3
    # Of before the third round of learning, which is what took it there.
    assert results(again)["kept_iteration"] == 2
    assert results(again) == results(whole)


def test_prompts_of_which_none_may_be_asked_are_told_in_a_line(policy_dir, scorer_dir, tmp_path):
    folder = write_prompts(tmp_path / "harmless")
    records = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r | {"kind": "harmless"}) + "\n" for r in records))
    inputs = {"initial": policy_dir, "preference_model": scorer_dir, "prompts": folder}
    with pytest.raises(JobError, match="harmless_weight is 0: nothing to train on"):
        run_ppo(tmp_path / "run", inputs, {"iterations": 1, "harmless_weight": 0.0})


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_utilisation_counts_the_models_that_learn(policy_dir, scorer_dir, prompts_dir, tmp_path, monkeypatch, critic):
    inputs = {"initial": policy_dir, "preference_model": scorer_dir, "prompts": prompts_dir}
    job = ppo_job(tmp_path / "run", inputs, {"iterations": 1, "critic": critic})
    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e15)
    monkeypatch.setattr(loop, "learning_operations", lambda model: 4e9 if hasattr(model, "lm_head") else 1e9)
    training = PolicyTraining(job, settings_from(PPOSettings, job.settings), ChatFormat.load(policy_dir))
    training._iterate(0)
    line = json.loads((job.out / "metrics.jsonl").read_text())
    # Operations of a token times the tokens that are learned from in a second, of 1e15.
    operations = 4e9 if critic == "shared" else 5e9
    assert line["perf/mfu"] == pytest.approx(operations * line["perf/learn_tokens_per_s"] / 1e15, rel=0.01)
