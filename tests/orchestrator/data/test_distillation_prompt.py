"""The prompt of context distillation: how a file becomes messages, and the project's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.config import load_config, parse_config
from orchestrator.data.named_files import PROMPT, parse_prompt, write_prompt
from orchestrator.errors import ConfigError


def test_a_prompt_is_a_preamble_and_examples() -> None:
    examples = "\n---\n\nHuman: One\ntwo?\n\nAssistant: Three.\n---\nHuman: a\nAssistant: b\n"
    text = f"Be kind\nand short.\n\nAnd true.\n{examples}"
    assert parse_prompt(text) == [
        {"role": "system", "content": "Be kind and short.\n\nAnd true."},
        {"role": "user", "content": "One two?"},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert parse_prompt("Be kind.") == [{"role": "system", "content": "Be kind."}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  \n", "is empty"),
        ("x\n---\nHuman: a\n", "has the turns Human; expected"),
        ("x\n---\nAssistant: a\n\nHuman: b\n", "has the turns Assistant, Human"),
        ("x\n---\ny\n\nHuman: a\nAssistant: b\n", "Example 1 of the prompt begins with 'y'"),
    ],
)
def test_a_prompt_of_another_shape_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_prompt(text)


def test_our_own_prompt_has_examples_and_its_version_is_its_text(tmp_path: Path) -> None:
    told = write_prompt(PROMPT, tmp_path)
    record = json.loads((tmp_path / "prompt.json").read_text())
    assert [message["role"] for message in record["messages"]] == ["system", *["user", "assistant"] * 3]
    assert record["version"] == told["version"]
    assert told["version"].startswith("hhh-1 ")
    changed = tmp_path / "hhh-1.md"
    changed.write_text(PROMPT.read_text() + "\n")
    assert write_prompt(changed, tmp_path)["version"] != told["version"]


def test_the_files_of_the_section_are_found_from_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "cycle.toml").write_text(
        '[initial_policy]\npath = "org/model"\n[initial_policy.distill]\nfiles = ["a.txt"]\nprompt_file = "p.md"\n'
        'teacher = "teacher"\nreference_learning_rate = 1e-3\n'
    )
    section = load_config(tmp_path / "cycle.toml").initial_policy.distill
    assert section is not None
    assert [section.files, section.prompt_file, section.teacher] == [
        [str(tmp_path / "a.txt")],
        str(tmp_path / "p.md"),
        str(tmp_path / "teacher"),
    ]
    assert parse_config({"initial_policy": {"path": "x"}}).initial_policy.distill is None
