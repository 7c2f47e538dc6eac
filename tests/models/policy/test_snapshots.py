"""Snapshots at even steps of √KL: which are kept and chosen, and that a killed run ends with the same bytes."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from models.chat.format import ChatFormat
from models.jobs import train_policy
from models.model_folders.loading import load_causal_lm
from models.policy.learning import PolicyLearner
from models.policy.results import CurvePoint
from models.policy.snapshots import CANDIDATES_PER_SNAPSHOT, SnapshotKeeper
from models.runtime.checkpoints import Checkpoints
from models.runtime.job import Job
from tests.folders import contents
from tests.models.marked_words import write_prompts, write_scorer

SETTINGS = {"learning_rate": 2e-3, "prompts_per_iteration": 16, "minibatch_replies": 8, "max_reply_tokens": 8}
ITERATIONS = 12


def keep(folder, roots, count):
    """A keeper to which policies at these √KL were offered; each one's file holds its number."""
    keeper = SnapshotKeeper(folder, count)
    for number, root in enumerate(roots):
        point = CurvePoint(samples=number, kl_nats=root**2, score=0.0)
        keeper.offer(point, lambda out, at: (out / "weights").write_text(str(at.samples)))
    return keeper


def test_the_chosen_ones_stand_at_even_steps(tmp_path):
    # √KL 0, 0.1, 0.2 … 10: even steps of 2 for four snapshots, the result being the fifth.
    keeper = keep(tmp_path, [0.1 * i for i in range(101)], 4)
    assert len(keeper.kept) <= CANDIDATES_PER_SNAPSHOT * 4
    # 0.01 doubled ten times: 10.24 would leave nothing, with 0.64 there are 15 levels, with 1.28 seven.
    assert keeper.step == pytest.approx(1.28)
    # First policies at or beyond 1.28, 2.56 … : 1.3, 2.6, 3.9, 5.2, 6.4, 7.7, 9.0; of 9.0 a fifth is 1.8.
    assert [round(math.sqrt(kept.kl_nats), 1) for kept in keeper.kept] == [1.3, 2.6, 3.9, 5.2, 6.4, 7.7, 9.0]
    assert [round(math.sqrt(point.kl_nats), 1) for point in keeper.chosen()] == [1.3, 3.9, 5.2, 7.7]


def test_a_run_in_great_leaps_keeps_what_there_is(tmp_path):
    keeper = keep(tmp_path, [0.0, 2.0, 1.0, 4.0], 5)
    # The way back to 1.0 reaches nothing new, and the start is the initial policy.
    assert [point.samples for point in keeper.chosen()] == [1, 3]
    keeper.copy_chosen(tmp_path / "out")
    assert [entry.folder for entry in keeper.listed()] == ["snapshots/01", "snapshots/02"]
    assert (tmp_path / "out" / "snapshots" / "02" / "weights").read_text() == "3"


def test_a_run_that_does_not_move_has_none(tmp_path):
    keeper = keep(tmp_path / "none", [0.0, 1e-4, -0.0], 3)
    assert keeper.chosen() == []
    keeper.copy_chosen(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert keeper.listed() == ()


def test_without_snapshots_nothing_is_written(tmp_path):
    assert keep(tmp_path / "none", [0.0, 1.0, 2.0], 0).chosen() == []
    assert not (tmp_path / "none").exists()


def offer(keeper, numbers, roots):
    for number in numbers:
        point = CurvePoint(samples=number, kl_nats=roots[number] ** 2, score=0.0)
        keeper.offer(point, lambda out, at: (out / "weights").write_text(str(at.samples)))


def test_what_a_checkpoint_names_stays_while_a_job_may_go_on_from_it(tmp_path):
    roots = [0.05 * i for i in range(60)]
    keeper, states = SnapshotKeeper(tmp_path / "a", 1), []
    for numbers in (range(5), range(5, 20), range(20, 40), range(40, 60)):
        offer(keeper, numbers, roots)
        keeper.checkpointed()
        states.append(json.loads(json.dumps(keeper.state_dict())))
        # Killed here, with the last one half written and the one before damaged, it goes on from the third.
        for state in states[-3:]:
            resumed = SnapshotKeeper(tmp_path / "a", 1)
            resumed.load_state_dict(state)
            assert resumed.kept
            assert all((resumed.place(kept) / "weights").exists() for kept in resumed.kept)
    named = {str(kept["samples"]) for state in states[-3:] for kept in state["kept"]}
    assert {folder.name for folder in (tmp_path / "a").iterdir()} == named
    # What only the first named is gone.
    assert {str(kept["samples"]) for kept in states[0]["kept"]} - named

    resumed = SnapshotKeeper(tmp_path / "a", 1)
    resumed.load_state_dict(states[1])
    offer(resumed, range(20, 60), roots)
    assert resumed.state_dict() == keeper.state_dict()
    assert all((resumed.place(kept) / "weights").read_text() == str(kept.samples) for kept in resumed.kept)
    resumed.start_over()
    assert list((tmp_path / "a").iterdir()) == []


# In the job


@pytest.fixture(scope="module")
def scorer_dir(policy_dir, tmp_path_factory):
    return write_scorer(policy_dir, tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def prompts_dir(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture
def train(policy_dir, scorer_dir, prompts_dir, tmp_path):
    """Runs the job in this process: train(name, **settings) -> its output directory."""

    def start(name, **settings):
        inputs = {"initial": str(policy_dir), "preference_model": str(scorer_dir), "prompts": str(prompts_dir)}
        spec = {"job": "train_policy", "inputs": inputs, "settings": SETTINGS | settings, "seed": 5, "device": "cpu"}
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        job = Job(spec, out)
        job.prepare_process()
        train_policy.run(job)
        return out

    yield start
    torch.use_deterministic_algorithms(False)


def test_each_snapshot_is_a_policy_of_the_run_and_the_result_is_as_without_them(train, policy_dir):
    plain = train("plain", iterations=ITERATIONS) / "result"
    out = train("kept", iterations=ITERATIONS, snapshots=3)
    result = out / "result"
    assert not (out / "snapshots").exists()
    assert (result / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert not (plain / "snapshots").exists()
    numbers = json.loads((result / "results.json").read_text())
    assert "snapshots" not in json.loads((plain / "results.json").read_text())
    assert 1 <= len(numbers["snapshots"]) <= 3
    on_curve = {point["samples"]: point for point in numbers["curve"]}
    for entry in numbers["snapshots"]:
        assert entry.items() >= on_curve[entry["samples"]].items()
        folder = result / entry["folder"]
        for name in ("chat.json", "chat_template.jinja", "tokenizer.json"):
            assert (folder / name).read_bytes() == (policy_dir / name).read_bytes()
        assert f"| samples | {entry['samples']} |" in (folder / "README.md").read_text()
        assert load_causal_lm(folder).config.eos_token_id == ChatFormat.load(policy_dir).eos_id
    # A run of as many iterations as the snapshot's samples ends with exactly its weights.
    first = numbers["snapshots"][0]
    shorter = train("shorter", iterations=first["samples"] // 16) / "result"
    mine, its = (load_file(folder / "model.safetensors") for folder in (result / first["folder"], shorter))
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_what_a_run_without_a_readable_checkpoint_left_goes(train, monkeypatch, tmp_path):
    left = tmp_path / "run" / "snapshots" / "999"
    left.mkdir(parents=True)
    (left / "weights").touch()

    def gone(self, *_):
        assert not left.exists()
        raise KeyboardInterrupt

    # Before the first step, and not with everything else at the end.
    monkeypatch.setattr(PolicyLearner, "learn", gone)
    with pytest.raises(KeyboardInterrupt):
        train("run", iterations=1, snapshots=1)


def written_to_the_end(out):
    """Once the checkpoint that a run in this process was writing when it ended is on disk."""
    assert Checkpoints(out / "checkpoint").newest() is not None


@pytest.mark.parametrize(("damage", "goes_on_from"), [(None, 6), (b"", 3)], ids=["whole", "newest damaged"])
def test_a_killed_run_ends_with_the_same_snapshots(train, monkeypatch, tmp_path, capsys, damage, goes_on_from):
    settings = {"iterations": ITERATIONS, "checkpoint_every": 3, "snapshots": 2}
    whole = train("whole", **settings) / "result"
    # Killed in iteration 8, after candidates of later iterations than the checkpoint's were written.
    learn = PolicyLearner.learn

    def dies(self, iteration, *rest):
        if iteration == 7:
            raise KeyboardInterrupt
        return learn(self, iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(PolicyLearner, "learn", dies)
        with pytest.raises(KeyboardInterrupt):
            train("killed", **settings)
    assert any((tmp_path / "killed" / "snapshots").iterdir())
    if damage is not None:
        written_to_the_end(tmp_path / "killed")
        (tmp_path / "killed" / "checkpoint" / "state.pt").write_bytes(damage)
    again = train("killed", **settings)
    assert json.loads((again / "run.json").read_text())["resumed_at_step"] == goes_on_from
    assert ("going on from the one before" in capsys.readouterr().err) == (damage is not None)
    assert contents(again / "result") == contents(whole)
