"""Prompts for a detector, from the files that operators have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.detectors.results import Beyond, Examples, OtherPrompts
from orchestrator.config import parse_config
from orchestrator.data.named_files import write_prompts
from orchestrator.errors import ConfigError
from orchestrator.reports.detectors import FittedDetector, detector_rows


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
        (
            '{"messages": [{"role": "assistant", "content": "x"}]}\n',
            "line 1: no_user_message: .*not the user's; expected",
        ),
        ('{"prompt": "x"}\n{"promt": "y"}\n', "line 2: missing_field: no field 'prompt'; found promt"),
        ("[]\n", "holds no prompts"),
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


def test_the_report_tells_what_a_detector_is_worth_and_how_it_is_used() -> None:
    assert detector_rows(None) == []
    detector = FittedDetector(
        kind="relative",
        layer=2,
        layer_chosen_by="rule",
        threshold=3.5,
        num_fit=70,
        num_validation=15,
        num_examples=0,
        left_out=0,
        false_alarms=Beyond(n=20, beyond=1, share=0.05, ci=(0.009, 0.236)),
        digest="sha256:abc",
    )
    alone = detector_rows(detector)
    assert alone == [
        (
            "Detector of far requests",
            "relative on layer 2; 5.0% [0.9%, 23.6%] of unseen prompts of home lie beyond its threshold (n = 20)",
        ),
        ("… before the policies", "`orchestrator serve-policy --detector sha256:abc`"),
    ]
    others = OtherPrompts(n=4, beyond=3, share=0.75, ci=(0.3, 0.95), auroc=0.9, length_auroc=0.6)
    examples = Examples(auroc_by_layer={"1": 0.5, "2": None}, length_auroc=0.7)
    first, *between, last = detector_rows(replace(detector, others=others, examples=examples))
    assert [first, last] == alone
    assert between == [
        (
            "… prompts of the other kind",
            "75.0% [30.0%, 95.0%] beyond it (n = 4); AUROC 0.900, of the length alone 0.600",
        ),
        ("… examples", "AUROC not measured, of the length alone 0.700"),
    ]
