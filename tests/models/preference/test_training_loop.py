"""The loop of the preference model's training: what it logs, returns, counts and keeps, held to numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.backbone.precision import slow_bfloat16
from models.chat.format import ChatFormat
from models.preference.comparison_set import token_pair
from models.preference.model import fresh_preference_model
from models.preference.pairs import TokenPair
from models.preference.settings import PreferenceModelSettings
from models.preference.training import Training, parameter_groups, rate_factor
from models.runtime.job import Job
from tests.models.preference_world import polite_comparisons

RATE = 1e-3


@pytest.fixture(scope="module")
def pairs(policy_dir: Path) -> list[TokenPair]:
    chat = ChatFormat.load(policy_dir)
    return [token_pair(record, chat) for record in polite_comparisons(7, 0)]


@pytest.fixture
def training(policy_dir: Path, pairs: list[TokenPair], tmp_path: Path) -> Any:
    """training(**settings) -> the loop over seven pairs in batches of three, not yet run."""

    def make(name: str = "run", **settings: Any) -> Training:
        (tmp_path / name).mkdir()
        chat = ChatFormat.load(policy_dir)
        job = Job({"seed": 0, "inputs": {"initial": str(policy_dir)}}, tmp_path / name)
        model = fresh_preference_model(policy_dir, chat, seed=0, device=torch.device("cpu"))
        quick = {"batch_pairs": 3, "learning_rate": RATE, "epochs": 2, "lr_schedule": "linear", "warmup_fraction": 0.3}
        return Training(job, PreferenceModelSettings(**(quick | settings)), model, chat, pairs)

    return make


def lines_of(training: Training) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (training.job.out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("packed", [True, False])
def test_each_step_is_logged_as_it_was_before_it_learned(training: Any, pairs: list[TokenPair], packed: bool) -> None:
    watched, heard = training(), []
    watched.packed = packed
    watched.chunk_tokens = 64  # several chunks a step
    step = watched._step

    def judged(number: int, batch: list[int]) -> tuple[float, float, float]:
        with torch.no_grad():
            gaps = []
            for index in batch:
                pair = pairs[index]
                better, worse = (
                    watched.model(torch.tensor([[*pair.prefix_ids, *side]])).logits.item()
                    for side in (pair.better_ids, pair.worse_ids)
                )
                gaps.append(better - worse)
        heard.append((batch, gaps))
        return step(number, batch)

    watched._step = judged
    mean_loss = watched.run()
    # Two epochs of 3, 3 and 1 pairs, each pair once in each.
    assert [len(batch) for batch, _ in heard] == [3, 3, 1] * 2
    for epoch in (heard[:3], heard[3:]):
        assert sorted(index for batch, _ in epoch for index in batch) == list(range(7))
    lines = lines_of(watched)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    losses = [[torch.nn.functional.softplus(torch.tensor(-gap)).item() for gap in gaps] for _, gaps in heard]
    for line, (_, gaps), each in zip(lines, heard, losses, strict=True):
        assert line["loss"] == pytest.approx(sum(each) / len(each), rel=1e-4)
        assert line["accuracy"] == pytest.approx(sum(gap > 0 for gap in gaps) / len(gaps))
    # A step of one pair weighs a third of one of three.
    assert mean_loss == pytest.approx(sum(map(sum, losses)) / 14, rel=1e-4)
    # ceil(0.3 * 6) = 2 steps of warm-up, then down to 0 one step after the last.
    assert [line["learning_rate"] / RATE for line in lines] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_what_was_done_in_a_second_is_told(training: Any, pairs: list[TokenPair]) -> None:
    run = training()
    run.packed = False
    run.chunk_tokens = 10_000  # a chunk a step, padded to its longest side
    run.run()
    facts = run.job.facts
    assert facts["pairs_per_second"] == pytest.approx(14 / facts["train_seconds"], rel=0.05)
    longest = [
        2 * max(max(pairs[i].better_tokens, pairs[i].worse_tokens) for i in run._batch(step)) for step in range(6)
    ]
    tokens = sum(len(run._batch(step)) * longest[step] for step in range(6))
    assert run.tokens_computed == tokens
    assert facts["tokens_per_second"] == pytest.approx(tokens / facts["train_seconds"], rel=0.05)
    assert facts["pairs_per_second"] == round(facts["pairs_per_second"], 1)


def test_trees_count_the_tokens_that_they_hold(training: Any, pairs: list[TokenPair]) -> None:
    run = training(epochs=1)
    assert run.packed
    run.run()
    # A pair of its own is its beginning once and both ends.
    assert run.tokens_computed == sum(
        len(pair.prefix_ids) + len(pair.better_ids) + len(pair.worse_ids) for pair in pairs
    )


def test_checkpoints_come_every_so_many_steps_and_none_after_the_last(
    training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Job, "save_checkpoint", lambda self, step, state: saved.append(step))
    training("two", checkpoint_every=2).run()
    assert saved == [2, 4]
    saved.clear()
    training("four", checkpoint_every=4).run()
    assert saved == [4]


def test_it_goes_on_with_the_loss_of_what_it_did_before(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = training("whole").run()
    log = Job.log

    def interrupted(self: Job, step: int, **numbers: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt
        log(self, step, **numbers)

    cut = training("cut", checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cut.run()
    again = Training(cut.job, cut.settings, training("again").model, cut.chat, cut.pairs)
    assert again.run() == whole
    assert cut.job.resumed_at_step == 3
    assert [line["step"] for line in lines_of(again)] == [1, 2, 3, 4, 5, 6]


def test_soft_targets_are_taken_where_they_are_asked_for_and_nowhere_else(
    training: Any, pairs: list[TokenPair]
) -> None:
    assert training("hard", targets="hard").targets is None
    unknown = training("soft", targets="soft", soft_target_unknown=0.8).targets
    assert all(pair.strength is None for pair in pairs)
    assert unknown.tolist() == pytest.approx([0.8] * 7)


def test_the_output_layer_is_read_where_the_loss_has_a_part_for_it(training: Any) -> None:
    assert training("without").output_layer is None
    assert training("with", lm_coef=0.1).output_layer is not None


def test_a_slow_number_format_is_told(training: Any, capsys: pytest.CaptureFixture[str]) -> None:
    training("exact")
    assert capsys.readouterr().err == ""
    training("rounded", precision="bfloat16")
    assert capsys.readouterr().err.strip() == (slow_bfloat16("cpu") or "")


@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_computed_in_the_format_that_is_named(training: Any, pairs: list[TokenPair], packed: bool) -> None:
    exact, rounded = training("exact"), training("rounded", precision="bfloat16")
    exact.packed = rounded.packed = packed
    found = []
    for loop in (exact, rounded):
        with torch.no_grad():
            loop.model.score.weight.mul_(8)
            chunks = list(loop._scored_chunks(pairs))
        found.append(torch.cat([torch.cat((better, worse)) for _, better, worse in chunks]).float())
    apart = (found[0] - found[1]).abs().max()
    # bfloat16 has three digits.
    assert 0 < apart < 0.05 * found[0].abs().max()


def test_matrices_of_any_rank_decay_and_vectors_do_not() -> None:
    model = torch.nn.Module()
    model.experts = torch.nn.Parameter(torch.zeros(2, 3, 4))
    model.matrix = torch.nn.Parameter(torch.zeros(3, 4))
    model.gain = torch.nn.Parameter(torch.zeros(4))
    model.frozen = torch.nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    decayed, plain = parameter_groups(model, 0.1)
    assert ([p.ndim for p in decayed["params"]], decayed["weight_decay"]) == ([3, 2], 0.1)
    assert ([p.ndim for p in plain["params"]], plain["weight_decay"]) == ([1], 0.0)


def test_schedules_by_hand() -> None:
    # Two of ten steps warm up; step 4 is a quarter of the way, step 6 half of it.
    assert [rate_factor(step, 10, 2, "linear") for step in (0, 1, 4, 6)] == pytest.approx([0.5, 1.0, 0.75, 0.5])
    assert [rate_factor(step, 10, 2, "cosine") for step in (2, 4, 6)] == pytest.approx([1.0, 0.853553, 0.5])
    assert rate_factor(9, 10, 2, "constant") == 1.0
