"""Pretraining: batches, loss, learning, mistakes, and exact resume after SIGKILL."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from models.chat import dialogue_files
from models.chat.format import ChatFormat, Message
from models.initial_policy import pretraining
from models.initial_policy.pretraining import epoch_steps, learning_rate_factor, mean_loss
from models.initial_policy.settings import PretrainSettings
from models.jobs import pretrain
from models.runtime.job import Job, JobError, main
from tests.folders import contents
from tests.models.tiny_folders import prepare

LOSS_TOLERANCE = 1e-5
SMALL = {"hidden_size": 32, "num_layers": 1, "vocab_size": 300, "batch_tokens": 256, "max_tokens": 64}
COLOURS = ("red", "green", "blue", "white")


def write_dialogues(folder: Path, count: int = 300) -> Path:
    """Dialogues whose answer follows from the question, of several lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    with (folder / "dialogues.jsonl").open("w") as file:
        for number in range(count):
            messages = []
            for _ in range(rng.choice((1, 2))):
                thing, colour = f"thing {number % 7}", COLOURS[number % 7 % 4]
                messages.append({"role": "user", "content": f"What colour is {thing}?"})
                messages.append({"role": "assistant", "content": f"It is {colour}." + " Really." * rng.randrange(3)})
            file.write(json.dumps({"messages": messages}) + "\n")
    return folder


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dialogues(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(text_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a small run, never killed."""
    return run_here(text_dir, tmp_path_factory.mktemp("trained"), epochs=2, checkpoint_every=20)


def spec_of(text: Path, **settings: object) -> dict[str, object]:
    return {"job": "pretrain", "inputs": {"text": str(text)}, "settings": SMALL | settings, "seed": 1, "threads": 1}


def run_here(text: Path, out: Path, **settings: object) -> Path:
    (out / "spec.json").write_text(json.dumps(spec_of(text, **settings)))
    main("pretrain", pretrain.run, ["--spec", str(out / "spec.json"), "--out", str(out)])
    return out


def sequences(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(6, 50) for _ in range(rng.randrange(2, 40))] for _ in range(count)]


def test_every_sequence_is_in_an_epoch_once() -> None:
    ids = sequences(3000)
    steps = epoch_steps(ids, PretrainSettings(batch_tokens=3000), seed=3, epoch=1)
    assert sorted(index for step in steps for chunk in step for index in chunk) == list(range(3000))
    assert all(sum(len(ids[index]) for chunk in step for index in chunk) <= 3000 for step in steps)
    # Hardly a token of padding is computed.
    computed = sum(len(chunk) * max(len(ids[index]) for index in chunk) for step in steps for chunk in step)
    assert computed < 1.05 * sum(map(len, ids))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    ids, settings = sequences(200), PretrainSettings(batch_tokens=500)
    first = epoch_steps(ids, settings, seed=3, epoch=1)
    torch.rand(7)  # the global random state plays no part
    assert epoch_steps(ids, settings, seed=3, epoch=1) == first
    assert epoch_steps(ids, settings, seed=3, epoch=2) != first
    assert epoch_steps(ids, settings, seed=4, epoch=1) != first


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    # 10 steps, 2 of warm-up: 1/3, 2/3, then from 1 down by 1/8 a step.
    factors = [learning_rate_factor(step, 10, 0.2) for step in range(10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


@pytest.fixture(scope="module")
def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_model_without_opinion_has_the_entropy_of_the_vocabulary(tiny_model: LlamaForCausalLM) -> None:
    weight = tiny_model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    assert mean_loss(tiny_model, [[1, 2, 3], [4, 5]], torch.device("cpu")) == pytest.approx(math.log(50))
    with torch.no_grad():
        weight.copy_(kept)


def test_padding_and_neighbours_change_nothing(tiny_model: LlamaForCausalLM) -> None:
    """The mean over all targets equals that of one sequence at a time, weighted by its targets."""
    ids = sequences(20)
    cpu = torch.device("cpu")
    alone = [(mean_loss(tiny_model, [sequence], cpu), len(sequence) - 1) for sequence in ids]
    expected = sum(loss * count for loss, count in alone) / sum(count for _, count in alone)
    assert mean_loss(tiny_model, ids, cpu) == pytest.approx(expected, abs=LOSS_TOLERANCE)
    # The reference: transformers' own loss for one sequence.
    batch = torch.tensor([ids[0]])
    assert alone[0][0] == pytest.approx(tiny_model(batch, labels=batch).loss.item(), abs=LOSS_TOLERANCE)


def test_result_is_an_initial_policy_that_has_learnt(trained: Path, tmp_path: Path) -> None:
    result = trained / "result"
    results = json.loads((result / "results.json").read_text())
    # 7 things, their colours and 0 to 2 "Really."s: most of a text is certain, so far below log 300 = 5.7.
    assert results["held_out_loss"] < 2.5
    assert results["train_loss"] < 2.5
    assert results["optimiser_steps"] == len((trained / "metrics.jsonl").read_text().splitlines()) > 50
    assert results["vocab_size"] == 300
    model = AutoModelForCausalLM.from_pretrained(result)
    assert model.dtype == torch.float32
    assert results["num_parameters"] == model.num_parameters()
    chat = ChatFormat.load(result)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (chat.eos_id, chat.pad_id)
    again = prepare(result, tmp_path / "again")
    assert json.loads((again / "results.json").read_text())["added_tokens"] == []
    assert (again / "model.safetensors").read_bytes() == (result / "model.safetensors").read_bytes()
    assert (again / "chat.json").read_bytes() == (result / "chat.json").read_bytes()


def test_killed_run_ends_with_the_same_bytes(trained: Path, text_dir: Path, tmp_path: Path) -> None:
    """SIGKILL after a random step, then the same command again."""
    (tmp_path / "spec.json").write_text((trained / "spec.json").read_text())
    steps = len((trained / "metrics.jsonl").read_text().splitlines())
    kill_after = random.randrange(20, steps * 3 // 4)
    command = [sys.executable, "-m", "models.jobs.pretrain", "--spec", "spec.json", "--out", "."]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(pretrain.__file__).parents[2])])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < kill_after):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "result").exists(), f"finished before it could be killed after step {kill_after}"
    main("pretrain", pretrain.run, ["--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path)])
    assert json.loads((tmp_path / "run.json").read_text())["resumed_at_step"] >= 20
    assert contents(tmp_path / "result") == contents(trained / "result"), f"killed after step {kill_after}"
    assert metrics.read_text() == (trained / "metrics.jsonl").read_text()


def test_copies_of_a_dialogue_fall_on_one_side(tmp_path: Path) -> None:
    chat_settings = PretrainSettings(held_out_fraction=0.5)
    dialogues = dialogue_files.read_dialogues(write_dialogues(tmp_path, 40) / "dialogues.jsonl")
    chat = pretrain.write_chat_files(pretrain.train_tokenizer(["a"], 300), tmp_path / "chat")
    train, held_out = pretraining.split_pieces(dialogues * 2, chat, chat_settings)
    assert not {tuple(ids) for ids in train} & {tuple(ids) for ids in held_out}
    assert len(train) + len(held_out) == 80
    assert min(len(train), len(held_out)) > 10


def test_long_text_is_cut_into_pieces(tmp_path: Path) -> None:
    chat = pretrain.write_chat_files(pretrain.train_tokenizer(["a"], 300), tmp_path)
    dialogues = [[Message(role="assistant", content="x" * 37)]]
    # <|assistant|>, 37 letters, <|end|>: 39 ids, so 16 + 16 + 7.
    train, _ = pretraining.split_pieces(dialogues, chat, PretrainSettings(max_tokens=16, held_out_fraction=0))
    assert [len(ids) for ids in train] == [16, 16, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; expected one JSON object"),
        ("\n", "holds no dialogue"),
        ('{"text": "a"}\n{"messages": [{"role": "user"}]}\n', r"line 2 is no dialogue \(KeyError\('content'\)\)"),
        ('{"messages": ', "line 1 is no dialogue"),
        ('{"text": "a"}\n', "No optimiser step was taken"),
    ],
)
def test_mistakes_in_the_text(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "dialogues.jsonl").write_text(content)
    spec = spec_of(tmp_path, held_out_fraction=0.999999)
    with pytest.raises(JobError, match=message):
        pretrain.run(Job(spec, tmp_path))


@pytest.mark.parametrize(
    "settings", [{"hidden_size": 30}, {"epochs": 0}, {"held_out_fraction": 1.0}, {"max_tokens": 1}]
)
def test_settings_that_make_no_sense(text_dir: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(JobError, match="PretrainSettings"):
        pretrain.run(Job(spec_of(text_dir, **settings), tmp_path))
