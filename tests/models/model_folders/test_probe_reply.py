"""The fixed prompt: written with the weights, and another policy is told from this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.model_folders.probe_reply import FILE, TOKENS, ProbeReplyMismatch, check_probe_reply
from models.sampling.engine import DecodeEngine


def engine_of(folder: Path, max_context: int | None = None) -> tuple[DecodeEngine, ChatFormat]:
    chat = ChatFormat.load(folder)
    return DecodeEngine(load_causal_lm(folder), chat.eos_id, 4, max_context), chat


def test_a_prepared_policy_has_one_and_says_the_same_again(policy_dir: Path) -> None:
    told = json.loads((policy_dir / FILE).read_text())
    assert 0 < len(told["ids"]) == len(told["logprobs"]) <= TOKENS
    engine, chat = engine_of(policy_dir)
    assert check_probe_reply(engine, chat, policy_dir)
    # By the plain forward pass: each token is the likeliest, with the log-prob that stands there.
    with torch.no_grad():
        logits = engine.model(input_ids=torch.tensor([told["prompt_ids"] + told["ids"]])).logits[0].log_softmax(-1)
    for place, (token, logprob) in enumerate(zip(told["ids"], told["logprobs"], strict=True)):
        row = logits[len(told["prompt_ids"]) - 1 + place]
        assert (int(row.argmax()), float(row[token])) == (token, pytest.approx(logprob, abs=0.051))


def test_slightly_other_weights_are_noticed(policy_dir: Path) -> None:
    engine, chat = engine_of(policy_dir)
    with torch.no_grad():
        # One matrix scaled: what a failed conversion might do.
        next(p for name, p in engine.model.named_parameters() if name.endswith("down_proj.weight")).mul_(1.5)
    engine.sync()
    with pytest.raises(ProbeReplyMismatch, match="has log-prob"):
        check_probe_reply(engine, chat, policy_dir)


def test_the_rounding_of_another_number_format_is_borne_and_no_more(policy_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(policy_dir, folder)
    told = json.loads((folder / FILE).read_text())
    told["logprobs"] = [value - 0.15 for value in told["logprobs"]]
    (folder / FILE).write_text(json.dumps(told))
    engine, chat = engine_of(folder)
    for borne in (0.0, 0.02):
        with pytest.raises(ProbeReplyMismatch, match="has log-prob"):
            check_probe_reply(engine, chat, folder, borne)
    assert check_probe_reply(engine, chat, folder, 0.15)


def test_another_tokenizer_is_noticed(policy_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(policy_dir, folder)
    told = json.loads((folder / FILE).read_text())
    told["prompt_ids"][1] += 1
    (folder / FILE).write_text(json.dumps(told))
    with pytest.raises(ProbeReplyMismatch, match="other ids"):
        check_probe_reply(*engine_of(folder), folder)


def test_weights_that_are_not_numbers_are_noticed(policy_dir: Path) -> None:
    engine, chat = engine_of(policy_dir)
    told = json.loads((policy_dir / FILE).read_text())
    assert told["ids"]
    engine.generate = lambda *_: [type("C", (), {"ids": told["ids"], "logprobs": [float("nan")]})()]  # type: ignore[method-assign,assignment]
    with pytest.raises(ProbeReplyMismatch):
        check_probe_reply(engine, chat, policy_dir)


def test_without_one_or_without_room_nothing_is_proven(policy_dir: Path, tmp_path: Path) -> None:
    engine, chat = engine_of(policy_dir)
    assert not check_probe_reply(engine, chat, tmp_path)
    assert not check_probe_reply(*engine_of(policy_dir, max_context=10), policy_dir)
