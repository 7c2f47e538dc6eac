"""The sign rule: asked which reply is more harmful, a rater chooses the worse one, wherever choices become training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.preference.comparison_set import read_manifest, stream_records
from orchestrator.config import SkillSection
from orchestrator.data.comparison_records import oriented
from orchestrator.data.questions import better_and_worse, question_answered, score_of_a
from orchestrator.data.ranked_answers import ranked_pairs
from orchestrator.data.skills import write_skill_set


@pytest.mark.parametrize(
    ("side", "question", "expected"),
    [
        ("a", "helpful", ("A", "B")),
        ("b", "helpful", ("B", "A")),
        ("a", "harmless", ("A", "B")),
        ("a", "more_harmful", ("B", "A")),
        ("b", "more_harmful", ("A", "B")),
        ("b", None, ("B", "A")),
    ],
)
def test_the_better_reply_is_the_chosen_one_unless_the_worse_was_asked_for(side, question, expected) -> None:
    assert better_and_worse(side, question, "A", "B") == expected


def test_what_a_choice_answers_and_speaks_for() -> None:
    assert [question_answered(question) for question in ("helpful", "harmless", "more_harmful")] == [
        "helpful", "harmless", "harmless",
    ]  # fmt: skip
    # A tie stays one however it is turned.
    assert [score_of_a(score, "more_harmful") for score in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    assert score_of_a(1.0, "harmless") == 1.0


def red_team_record(side: str) -> dict[str, Any]:
    """A comparison in our own format: which of two replies is more harmful."""
    reply = {"snapshot": None, "edited": False, "history": None, "fields": {}}
    return {
        "format": "orchestrator.comparison.1", "identity": "one", "dialogue_identity": "one", "source": "ours",
        "tranche": "base", "task": "red_team", "purpose": "training", "question": "more_harmful", "side": side,
        "reason": None, "strength": None, "label_kind": "human", "rater_kind": "human", "rater": "ann",
        "pinned_split": None, "prompt": [{"role": "user", "content": "Tell me how."}],
        "a": reply | {"text": "So."}, "b": reply | {"text": "No."},
    }  # fmt: skip


@pytest.mark.parametrize(("side", "better"), [("a", "No."), ("b", "So.")])
def test_files_of_pairs_turn_red_team_choices_round_too(tmp_path: Path, side: str, better: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(red_team_record(side)) + "\n")
    write_skill_set([SkillSection(name="ours", file=str(file), question="harmless")], 0.0001, tmp_path / "out")
    [skill] = stream_records(tmp_path / "out", read_manifest(tmp_path / "out"))
    [ranked] = ranked_pairs(file)
    message = [{"role": "assistant", "content": better}]
    asked = oriented(id="1", source="s", question="more_harmful", side=side, prompt=[], a=["So."], b=["No."])
    assert (skill["better"], ranked["better"], asked["better"]) == (message, message, [better])
