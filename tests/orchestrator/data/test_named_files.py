"""Files that a configuration names: one reader, which says file, line, what was found and what was expected."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import PMPSection, SkillSection
from orchestrator.data.check import read_texts
from orchestrator.data.named_files import write_prompt, write_prompts, write_text
from orchestrator.data.pair_set import write_orientation_pairs
from orchestrator.data.prompt_set import _read_file
from orchestrator.data.ranked_answers import write_pmp_pairs
from orchestrator.data.skills import write_skill_set
from orchestrator.errors import ConfigError, ImportFileError

PARTS = [{"type": "text", "text": "What is "}, {"type": "text", "text": "tea?"}]
PICTURE = [{"type": "image_url", "image_url": {"url": "x"}}]
READERS: dict[str, Callable[[Path, Path], object]] = {
    "initial_policy.pretrain.files": lambda file, out: write_text([file], out),
    "ood.examples_file": lambda file, out: write_prompts(file, "harmful", out),
    "prompts.train_file": lambda file, _: list(_read_file(file)),
    "orientation.file": write_orientation_pairs,
    "skills": lambda file, out: write_skill_set([SkillSection(name="s", file=str(file))], 0.1, out),
    "pmp.files": lambda file, out: write_pmp_pairs([file], PMPSection(), out),
}
EVALUATION = {"comparisons.check_against": lambda file, _: read_texts(file)}


def asked(content: Any) -> dict[str, Any]:
    """A record that is a prompt and a text to learn from."""
    return {"kind": "helpful", "messages": [{"role": "User", "content": content}]}


def compared(content: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": content}], "chosen": "yes", "rejected": "no"}


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """A new folder at each call."""
    numbers = itertools.count()

    def made() -> Path:
        (folder := tmp_path / f"out{next(numbers)}").mkdir()
        return folder

    return made


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json"])
def test_what_is_wrong_is_told_with_file_line_and_what_was_expected(
    tmp_path: Path, fresh: Callable[[], Path], name: str, form: str
) -> None:
    record = compared if name in ("orientation.file", "skills", "pmp.files") else asked
    wrongs = [{"odd": 1}]
    if name not in ("skills", "pmp.files"):  # which pass over a comparison that an import would refuse
        wrongs += [record(3), record(PICTURE), record([7])]
    for wrong in wrongs:
        lines = [json.dumps(record("What is tea?")), json.dumps(wrong)]
        text = "[" + ",\n".join(lines) + "]" if form == "json" else "\n".join(lines)
        file = tmp_path / f"file.{form}"
        file.write_bytes(gzip.compress(text.encode()) if form.endswith("gz") else text.encode())
        with pytest.raises((ConfigError, ImportFileError), match=f"{file}, line 2.*(expected|What each needs)"):
            READERS[name](file, fresh())


@pytest.mark.parametrize("name", [*READERS, *EVALUATION])
def test_what_a_file_is_instead_is_named(tmp_path: Path, fresh: Callable[[], Path], name: str) -> None:
    reader = (READERS | EVALUATION)[name]
    for content, kind in ((b"PAR1\x15\x04\x15\x10", "a Parquet file"), (b"<!DOCTYPE html><html>", "an HTML page")):
        file = tmp_path / "file.jsonl"
        file.write_bytes(content)
        with pytest.raises((ConfigError, ImportFileError), match=f"{file} is {kind}; expected text"):
            reader(file, fresh())
    with pytest.raises((ConfigError, ImportFileError), match=r"none\.jsonl: No such file"):
        reader(tmp_path / "none.jsonl", fresh())


def test_messages_in_parts_and_other_roles_are_read(tmp_path: Path) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text(json.dumps(asked(PARTS)) + "\n" + json.dumps(asked("Why?") | {"kind": "harmless"}))
    turn = {"role": "user", "content": "What is tea?"}
    assert next(iter(_read_file(file))) == ("helpful", [turn])
    write_prompts(file, "harmful", tmp_path)
    assert json.loads((tmp_path / "prompts.jsonl").read_text().splitlines()[0])["messages"] == [turn]
    write_text([file], tmp_path)
    assert json.loads((tmp_path / "dialogues.jsonl").read_text().splitlines()[0]) == {"messages": [turn]}


def test_messages_that_are_as_ours_are_kept_to_the_byte(tmp_path: Path) -> None:
    given = {"messages": [{"content": "Hi", "role": "user", "id": 3}, {"role": "assistant", "content": "Ho"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(given))
    write_text([tmp_path / "a.jsonl"], tmp_path)
    assert (tmp_path / "dialogues.jsonl").read_text() == json.dumps(given) + "\n"


def test_a_prompt_in_the_text_of_hh_is_a_dialogue(tmp_path: Path) -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: How?\n\nAssistant:"
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n" + json.dumps({"prompt": "Human: who?"}))
    write_prompts(tmp_path / "a.jsonl", "helpful", tmp_path)
    told = [json.loads(line)["messages"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [[turn["content"] for turn in turns] for turns in told] == [["Hi", "Ho", "How?"], ["Human: who?"]]


def test_conversations_are_dialogues_to_learn_from(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": turns}))
    write_text([tmp_path / "a.jsonl"], tmp_path)
    learned = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert json.loads((tmp_path / "dialogues.jsonl").read_text()) == {"messages": learned}


def test_a_text_that_is_none_is_not_learned_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": null}')
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2: wrong_type: text is NoneType"):
        write_text([tmp_path / "a.jsonl"], tmp_path)


def test_a_prompt_file_may_be_compressed_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbffirst\nsecond\n"))
    assert write_prompts(tmp_path / "a.txt.gz", "harmful", tmp_path)["num_prompts"] == 2
    assert '"first"' in (tmp_path / "prompts.jsonl").read_text()


def test_a_prompt_to_distil_from_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_bytes(b"Be kind.\xff")
    with pytest.raises(ConfigError, match=r"p\.md: byte 0xff is not UTF-8.*The configuration names it"):
        write_prompt(tmp_path / "p.md", tmp_path)


def test_votes_of_answers_are_whole_numbers(tmp_path: Path) -> None:
    file = tmp_path / "stack.jsonl"
    answers = [{"text": "a", "upvotes": 5.0}, {"text": "b", "upvotes": 0.0}]
    file.write_text(json.dumps({"question": "Q", "answers": answers}))
    (tmp_path / "out").mkdir()
    assert write_pmp_pairs([file], PMPSection(held_out_fraction=0.0001), tmp_path / "out").num_comparisons == 2
    answers[0]["upvotes"] = 1.5
    file.write_text(json.dumps({"question": "Q", "answers": answers}))
    (tmp_path / "more").mkdir()
    with pytest.raises(ConfigError, match=r"line 1 is no question .*upvotes is 1\.5; expected a whole number"):
        write_pmp_pairs([file], PMPSection(), tmp_path / "more")


def test_the_choice_of_summaries_may_be_a_whole_float(tmp_path: Path) -> None:
    record = {"info": {"post": "Long."}, "summaries": [{"text": "x"}, {"text": "y"}], "choice": 1.0}
    file = tmp_path / "s.jsonl"
    skill = SkillSection(name="s", file=str(file), template="summary/1")
    file.write_text(json.dumps(record))
    (tmp_path / "out").mkdir()
    assert write_skill_set([skill], 0.0001, tmp_path / "out").num_train == 1
    file.write_text(json.dumps(record | {"choice": 0.5}))
    (tmp_path / "more").mkdir()
    with pytest.raises(ConfigError, match=r"choice is 0\.5; expected a whole number"):
        write_skill_set([skill], 0.1, tmp_path / "more")
