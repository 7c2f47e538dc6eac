"""Prompts that a model writes after people's: what is kept of them, where they come from, the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from models.chat.format import ChatFormat
from models.chat.prompt_writing import Sieve, is_copy, message_key
from models.jobs import write_prompts
from models.jobs.write_prompts import user_opening
from models.policy.prompts import load_prompts
from models.runtime.job import Job, JobError


@pytest.fixture
def source(prompts_dir: Path, tmp_path: Path) -> Path:
    """The prompt set of the fixtures with different held-out texts and a manifest."""
    folder = tmp_path / "source"
    shutil.copytree(prompts_dir, folder)
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    counts = {"train": Counter[str](), "held_out": Counter[str]()}
    for line in lines:
        record = json.loads(line)
        counts[record["split"]][record["kind"]] += 1
    manifest = {"format": 1, "num_prompts": 24, "num_train": 12, "num_held_out": 12, "counts": counts, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write(policy: Path, source: Path, out: Path, seed: int = 0, **settings: Any) -> tuple[dict[str, Any], Path]:
    """The job in this process: its results and its result directory."""
    out.mkdir()
    spec = {
        "inputs": {"policy": str(policy), "prompts": str(source)},
        "settings": {"num_written": 9, "num_examples": 4, "max_prompt_tokens": 48, "max_attempts": 30} | settings,
        "seed": seed,
        "device": "cpu",
    }
    job = Job(spec, out)
    job.prepare_process()
    write_prompts.run(job)
    return json.loads((out / "result" / "results.json").read_text()), out / "result"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().split("\n") if line]


def test_written_prompts_join_the_training_part_and_name_their_examples(
    policy_dir: Path, source: Path, tmp_path: Path
) -> None:
    results, folder = write(policy_dir, source, tmp_path / "run")
    before = (source / "prompts.jsonl").read_bytes()
    assert (folder / "prompts.jsonl").read_bytes().startswith(before)
    found = records(folder)
    written = found[24:]
    # Examples are 8 helpful and 4 harmless openings: 9 * 8/12 = 6 and 3.
    assert results["num_written_by_kind"] == {"helpful": 6, "harmless": 3} == dict(Counter(r["kind"] for r in written))
    assert {record["split"] for record in written} == {"train"}
    for record in written:
        mine = {message_key(r["messages"]) for r in found[:24] if r["split"] == "train" and r["kind"] == record["kind"]}
        assert len(record["written_from"]) == 4
        assert set(record["written_from"]) <= mine
    assert len({record["messages"][0]["content"] for record in written}) == 9
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["num_train"], manifest["num_written"], manifest["counts"]["train"]["helpful"]) == (21, 9, 14)
    assert manifest["sha256"] == hashlib.sha256((folder / "prompts.jsonl").read_bytes()).hexdigest()
    assert len(load_prompts(folder, ChatFormat.load(policy_dir), "train", 400).prompts) == 21


def test_the_same_seed_writes_the_same_bytes_and_another_writes_others(
    policy_dir: Path, source: Path, tmp_path: Path
) -> None:
    once, again, other = (
        (write(policy_dir, source, tmp_path / name, seed)[1] / "prompts.jsonl").read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert once == again
    assert once != other


def test_a_prompt_set_without_an_opening_that_fits_is_refused(policy_dir: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="nothing to write after"):
        write(policy_dir, source, tmp_path / "run", max_prompt_tokens=4)


@pytest.mark.parametrize("name", ["policy_dir", "qwen2_policy_dir"])
def test_what_the_model_goes_on_with_is_a_turn_of_the_users(name: str, request: pytest.FixtureRequest) -> None:
    chat = ChatFormat.load(request.getfixturevalue(name))
    opening = user_opening(chat)
    ids = chat.encode([{"role": "user", "content": "Could you write the numbers?"}])
    assert ids[: len(opening)] == opening
    assert chat.decode(ids[len(opening) :]).startswith("Could")


def test_the_sieve_by_hand() -> None:
    sieve = Sieve(["Boil an egg!"], ["Paint a fence"], min_characters=8)
    examples = ["How do I boil an egg today?"]
    assert sieve.judge("how can one bake bread", examples, finished=True) == "kept"
    assert sieve.judge("How can one bake bread?", examples, finished=True) == "repeat"
    assert sieve.judge("boil, an egg", examples, finished=True) == "repeat"
    assert sieve.judge("paint a FENCE", examples, finished=True) == "held_out"
    assert sieve.judge("How do I boil an egg", examples, finished=True) == "copy"
    assert sieve.judge("why?", examples, finished=True) == "short"
    assert sieve.judge("?!?!?!?!?!", examples, finished=True) == "short"
    assert sieve.judge("how can one bake", examples, finished=False) == "unfinished"


def test_four_of_five_word_triples_make_a_copy() -> None:
    # "how do i", "do i boil", "i boil an", "boil an egg": all of them; with "a potato" two of four.
    assert is_copy("how do I boil an egg", "How do I boil an egg today?")
    assert not is_copy("how do I boil a potato", "How do I boil an egg today?")
    # Five triples, the last of which is new: 4 of 5.
    assert is_copy("how do I boil an egg fast", "How do I boil an egg today?")
    assert not is_copy("", "anything")
