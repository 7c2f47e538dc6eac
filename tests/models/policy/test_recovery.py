"""Recovery: after too large a step PPO goes on from its last good weights, and ends with the same bytes when killed."""

import json
from types import SimpleNamespace

import pytest
import torch

from models.chat.format import ChatFormat
from models.memory.live_bytes import LiveBytes
from models.policy import recovery
from models.policy.recovery import on_host, smaller_step_helps
from models.policy.results import PPOResult, Recovery
from models.policy.settings import PPOSettings
from models.policy.training import PolicyTraining
from models.runtime.job import Job
from models.runtime.results import result_from_json
from models.runtime.settings import settings_from
from orchestrator.reports.stops import kept_iterations
from tests.models.ppo_runs import metrics, ppo_job, results

FAR = 0.3  # a learning rate at which log-probs move by 3 nats a token in the first round
PER_ITERATION = 16
AT_ONCE = {"patience": 1, "recovery_rate": 0.01}


def typed(out):
    return result_from_json(PPOResult, results(out), where="the run")


def test_a_leap_is_taken_back_and_the_run_goes_on_with_a_smaller_step(train):
    out = train(iterations=5, learning_rate=FAR, watch=AT_ONCE)
    run, lines = typed(out), metrics(out)
    assert run.stopped is None
    [recovery] = run.recoveries
    assert (recovery.iteration, recovery.wire, recovery.back_to) == (1, "ratio", 0)
    assert recovery.learning_rate == pytest.approx(0.003)
    assert lines[0]["recovered"] == recovery.found == run.watch.alarms[0].found + " (iteration 1)"
    assert not any("recovered" in line for line in lines[1:])
    assert [line["lr"] for line in lines] == pytest.approx([0.3] + [0.003] * 4)
    # The start wrote the second rollout too; it has one point of the curve. The round that was given up counts nowhere.
    assert [line["objective/kl"] == 0.0 for line in lines] == [True, True, False, False, False]
    assert [point.samples for point in run.curve] == [PER_ITERATION * i for i in range(4)]
    assert run.samples == 4 * PER_ITERATION
    assert run.optimiser_steps == 5 * 4
    assert run.kl_nats > 0
    assert run.kept_iteration is None


def test_it_gives_up_after_so_many_recoveries(train):
    out = train(iterations=6, learning_rate=FAR, watch=AT_ONCE | {"recovery_rate": 1.0})
    run, lines = typed(out), metrics(out)
    assert [recovery.iteration for recovery in run.recoveries] == [1, 2]
    assert (run.watch.stopped_by, run.kept_iteration, run.kl_nats) == ("ratio", 0, 0.0)
    assert kept_iterations(run) == 0
    assert [("recovered" in line, "stopped" in line) for line in lines] == [(True, False), (True, False), (False, True)]


def test_it_is_off_at_zero(train):
    run = typed(train(iterations=6, learning_rate=FAR, watch=AT_ONCE | {"max_recoveries": 0}))
    assert (run.recoveries, run.watch.stopped_by, len(run.curve)) == (None, "ratio", 1)


def test_weights_that_break_are_left_behind(train):
    # 1e30 per step: the second minibatch's logits are no numbers.
    run = typed(train(iterations=3, learning_rate=1e30, watch={"recovery_rate": 3e-33}))
    assert run.stopped is None
    assert [(recovery.wire, recovery.iteration) for recovery in run.recoveries] == [("not_finite", 1)]
    assert "not finite in iteration 1" in run.recoveries[0].found


def test_a_limit_that_the_first_step_overran_is_no_end(train):
    wires = {"max_ratio_error": 0.0, "max_clip_fraction": 0.0, "recovery_rate": 0.01}
    out = train(iterations=4, learning_rate=FAR, max_kl_nats=5.0, watch=wires)
    run = typed(out)
    assert run.stopped is None
    assert [(recovery.wire, recovery.iteration, recovery.back_to) for recovery in run.recoveries] == [
        ("max_kl_nats", 2, 0)
    ]
    # The rollout that was beyond the limit is logged and not learned from.
    assert "lr" not in metrics(out)[1]
    assert "recovered" in metrics(out)[1]


def test_which_wires_a_smaller_step_helps():
    assert all(smaller_step_helps(wire, at_start=False) for wire in ("not_finite", "ratio", "clip_fraction"))
    # A policy that went too far on a long way is kept as it was before; at the start there is nothing to keep.
    assert [smaller_step_helps("entropy", at_start=at_start) for at_start in (True, False)] == [True, False]
    # Faults of the program or of the sampler stay what they are.
    for wire in ("start_kl", "first_ratio", "impossible_kl", "kl_drift"):
        assert not smaller_step_helps(wire, at_start=True)


def state_of(training):
    return on_host(
        {"policy": training.policy.model.state_dict(), "critic": training.critic and training.critic.state_dict()}
        | {name: value for name, value in training.learner.state.items() if name != "optimiser_steps"}
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    "choice",
    [{"critic": "shared"}, {"critic": "separate"}, {"advantage": "rloo", "samples_per_prompt": 2}],
    ids=["shared", "separate", "rloo"],
)
def test_everything_that_learns_is_put_back_however_often(policy_dir, scorer_dir, prompts_dir, tmp_path, choice):
    inputs = {"initial": policy_dir, "preference_model": scorer_dir, "prompts": prompts_dir}
    settings = {"iterations": 9, "kl_target_nats": 1.0} | choice
    job = ppo_job(tmp_path / "run", inputs, settings)
    training = PolicyTraining(job, settings_from(PPOSettings, job.settings), ChatFormat.load(policy_dir))
    for iteration in range(2):
        training._iterate(iteration)
    good, before = training._good_now(), state_of(training)
    for iteration in (2, 3):
        training._iterate(iteration)
        assert not same(state_of(training), before)
        # The second time shows that learning did not write into what is kept.
        good.bring_back(training.policy.model, training.critic, training.learner)
        assert same(state_of(training), before)
    assert training.learner.optimiser_steps == 4 * 4 * training.settings.samples_per_prompt
    torch.use_deterministic_algorithms(False)


def test_one_copy_of_what_is_good_is_in_memory_at_a_time_and_checkpoints_take_it_as_it_is(
    policy_dir, scorer_dir, prompts_dir, tmp_path
):
    inputs = {"initial": policy_dir, "preference_model": scorer_dir, "prompts": prompts_dir}
    job = ppo_job(tmp_path / "run", inputs, {"iterations": 9})
    training = PolicyTraining(job, settings_from(PPOSettings, job.settings), ChatFormat.load(policy_dir))
    training._iterate(0)
    with LiveBytes() as live:
        training._keep_as_good()
        one = live.now
        training._keep_as_good()
    # Weights and both moments, which are the whole of it but for a value head and counters.
    assert 3 * sum(parameter.nbytes for parameter in training.policy.model.parameters()) < one
    assert live.peak == one
    with LiveBytes() as live:
        training._checkpoint(1)
    assert live.peak == pytest.approx(one, rel=0.01)
    job.wait_for_checkpoint()
    kept = job.load_checkpoint()[1]["good"]
    assert same(kept, vars(training.good))
    torch.use_deterministic_algorithms(False)


# Killed


def killed_after(step, monkeypatch, train, change=lambda state: state, **settings):
    """A run that is killed when its checkpoint of that step is saved, and started again; its directory."""
    save = Job.save_checkpoint

    def killed(job, at, state):
        save(job, at, change(state) if at == step else state)
        if at == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train("killed", checkpoint_every=1, **settings)
    again = train("killed", checkpoint_every=1, **settings)
    assert json.loads((again / "run.json").read_text())["resumed_at_step"] == step
    return again


def timeless(out):
    return [{key: value for key, value in line.items() if key != "eps" and "perf/" not in key} for line in metrics(out)]


# Two rounds in a row are beyond the wire; killed between the two, after the recovery, and with the next one learned.
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_run_recovers_with_the_same_bytes(train, monkeypatch, step):
    # Rounds of 3.97 and 2.58 nats: beyond the bound, and not by twice as much, which would need no second one.
    wires = {"recovery_rate": 0.01, "max_ratio_error": 2.2}
    settings = {"iterations": 4, "learning_rate": FAR, "watch": wires}
    whole = train("whole", checkpoint_every=1, **settings)
    [recovery] = typed(whole).recoveries
    assert (recovery.iteration, recovery.back_to) == (2, 0)
    # Two rounds were given up, with the point of the weights between them.
    assert [point.samples for point in typed(whole).curve] == [0, PER_ITERATION]
    again = killed_after(step, monkeypatch, train, **settings)
    for path in sorted((whole / "result").iterdir()):
        assert path.read_bytes() == (again / "result" / path.name).read_bytes(), path.name
    assert timeless(whole) == timeless(again)


def test_a_checkpoint_of_before_there_were_recoveries_goes_on(train, monkeypatch):
    def older(state):
        watch = {name: value for name, value in state["monitor"]["watch"].items() if name != "learning_in_a_row"}
        kept = {name: value for name, value in state.items() if name not in ("kept", "recoveries", "rate_factor")}
        return kept | {"good": state["good"].value["policy"], "monitor": state["monitor"] | {"watch": watch}}

    whole = train("whole", iterations=4, checkpoint_every=1)
    again = killed_after(2, monkeypatch, train, change=older, iterations=4)
    assert (whole / "result" / "model.safetensors").read_bytes() == (
        again / "result" / "model.safetensors"
    ).read_bytes()
    assert results(whole) == results(again)


def test_results_hold_a_recovery_and_older_ones_none():
    older = {"optimiser_steps": 4, "samples": 64, "kl_nats": 0.5, "score_start": 0.0, "score_end": 1.0}
    assert result_from_json(PPOResult, older, where="an older run").recoveries is None
    recovery = {"iteration": 3, "wire": "ratio", "found": "far", "back_to": 1, "learning_rate": 1e-4}
    run = result_from_json(PPOResult, older | {"recoveries": [recovery]}, where="a run")
    assert run.recoveries == (Recovery(3, "ratio", "far", 1, 1e-4),)


def test_the_last_good_weights_lie_in_the_hosts_memory_and_move_no_more(monkeypatch):
    """On a GPU they would be a fourth copy of the policy; tests/models/test_gpu.py looks at where they are."""
    moved, to_host = [], recovery.on_host

    def noting(value):
        moved.append(to_host(value))
        return moved[-1]

    monkeypatch.setattr(recovery, "on_host", noting)
    model = torch.nn.Linear(2, 2)
    good = recovery.LastGood.now(model, torch.nn.Linear(2, 1), SimpleNamespace(state={}), 0, whole=False)
    assert good.policy is moved[-1]
    before = good.policy["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(good.policy["weight"], before)
