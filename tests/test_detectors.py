"""Prompts for a detector, from the files that operators have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.config import parse_config
from orchestrator.detectors import write_prompts
from orchestrator.errors import ConfigError


def read(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    return [(record["kind"], record["messages"][-1]["content"]) for record in map(json.loads, lines)]


def test_a_text_file_has_a_prompt_a_line_and_none_twice(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("first\n\n  second  \nfirst\n")
    assert write_prompts(tmp_path / "bad.txt", "harmful", tmp_path)["num_prompts"] == 2
    assert read(tmp_path) == [("harmful", "first"), ("harmful", "second")]


def test_json_lines_have_a_prompt_or_messages_and_may_name_their_kind(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    lines = [{"prompt": "one"}, {"messages": turns}, {"kind": "harmless", "prompt": "two"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_prompts(tmp_path / "asked.jsonl", "helpful", tmp_path)
    assert read(tmp_path) == [("helpful", "one"), ("helpful", "c"), ("harmless", "two")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "holds no prompts"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}\n', "line 1 is no prompt .*not the user's"),
        ('{"prompt": "x"}\n{"promt": "y"}\n', "line 2 is no prompt"),
        ("[]\n", "line 1 is no prompt"),
    ],
)
def test_what_is_no_prompt_is_told_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "asked.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        write_prompts(tmp_path / "asked.jsonl", "helpful", tmp_path)


def test_the_section_of_a_cycle_is_off_unless_it_is_given() -> None:
    plain = {"initial_policy": {"path": "x"}}
    assert parse_config(plain).ood is None
    section = parse_config(plain | {"ood": {}}).ood
    assert section is not None
    assert (section.detector, section.quantile) == ("relative", 0.99)
    with pytest.raises(ConfigError, match=r"did you mean quantile\? known are detector, examples_file, home"):
        parse_config(plain | {"ood": {"quantil": 0.9}})
