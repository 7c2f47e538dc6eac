"""`orchestrator evaluate-pm`: accuracy file by file, on pairs whose order is known and on LLMBar itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from models.chat.format import ChatFormat
from models.model_folders.saving import save_model
from models.preference.model import PreferenceModel, fresh_preference_model
from orchestrator import cli
from tests.models.tiny_folders import prepare, write_llama

PROMPTS = [f"Tell me {number}." for number in range(6)]
ANSWERS = [(f"answer {number}", f"reply number {number} and more") for number in range(6)]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained preference model of 512 tokens: it orders pairs somehow, and that is enough here."""
    folder = tmp_path_factory.mktemp("a scorer")
    policy = prepare(write_llama(folder / "llama", template=None), folder / "policy")
    chat = ChatFormat.load(policy)
    (folder / "model").mkdir()
    save_model(fresh_preference_model(policy, chat, 0, torch.device("cpu")), folder / "model", chat, "")
    return folder / "model"


@pytest.fixture
def evaluated(
    scorer: Path, home: Path, quick_jobs: None, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """`evaluated(*files)` runs the command and gives its JSON."""

    def run(*files: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
        names = [str(file) for file in files]
        status = cli.main(["evaluate-pm", *names, "--preference-model", str(scorer), "--json", *words])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        found: dict[str, Any] = json.loads(printed.out)
        return found

    return run


def write_choices(folder: Path, right: list[str], wrong: list[str], prompts: Sequence[str] = PROMPTS) -> Path:
    """Records of HHH's kind: which answer comes first says nothing."""
    folder.mkdir()
    with (folder / "hhh.jsonl").open("w") as lines:
        for number, (good, bad) in enumerate(zip(right, wrong, strict=True)):
            marked = {good: 1, bad: 0} if number % 2 else {bad: 0, good: 1}
            lines.write(json.dumps({"input": prompts[number % len(prompts)], "target_scores": marked}) + "\n")
    return folder / "hhh.jsonl"


def test_what_the_model_prefers_is_all_right_and_the_reverse_all_wrong(scorer, evaluated, tmp_path):
    model = PreferenceModel.load(scorer)
    preferred, other = [], []
    for prompt, pair in zip(PROMPTS, ANSWERS, strict=True):
        asked = {"role": "user", "content": prompt}
        scores = model.score([[asked, {"role": "assistant", "content": text}] for text in pair])
        preferred.append(pair[scores[1] > scores[0]])
        other.append(pair[scores[1] <= scores[0]])
    found = evaluated(
        write_choices(tmp_path / "good", preferred, other), write_choices(tmp_path / "bad", other, preferred)
    )
    good, bad = found["files"]["good/hhh.jsonl"], found["files"]["bad/hhh.jsonl"]
    assert (good["accuracy"], good["n"], bad["accuracy"], bad["n"]) == (1.0, 6, 0.0, 6)
    # Wilson at 6 of 6: the low end is 6 / (6 + 1.96²) = 0.6097.
    assert good["ci"] == pytest.approx([0.6097, 1.0], abs=1e-4)
    assert (good["dialogues"], good["design_effect"]) == (6, 1.0)
    # Both files ask the same six things, of which one each is right: no more variance than by chance, but Student's t
    # of 5 is 2.5706: half width 2.5706 / (1 + 6.608 / 12) · sqrt(0.25 / 12 + 6.608 / 576) = 1.6577 · 0.17974 = 0.2980.
    both = {"n": 12, "dialogues": 6, "design_effect": 1.0}
    assert found["all"] == {"accuracy": 0.5, "ci": pytest.approx([0.2020, 0.7980], abs=1e-4)} | both
    # Every mistake is in the second file; they are named by file and line, widest gap first.
    assert {pair["id"].split(":")[0] for pair in found["mistakes"]} == {"bad/hhh.jsonl"}
    assert [pair["gap"] for pair in found["mistakes"]] == sorted(pair["gap"] for pair in found["mistakes"])


def test_comparisons_of_one_prompt_are_one_dialogue(evaluated, tmp_path):
    good, bad = zip(*ANSWERS, strict=True)
    found = evaluated(write_choices(tmp_path / "good", list(good), list(bad), PROMPTS[:1]))["all"]
    assert (found["n"], found["dialogues"], found["ci"]) == (6, 1, [0.0, 1.0])


def test_llmbar_gives_an_accuracy_per_file_and_counts_what_is_too_long(evaluated, data_dir):
    files = [data_dir / "llmbar" / f"{name}.json" for name in ("natural", "adversarial_neighbor")]
    found = evaluated(*files)
    natural, neighbor = (found["files"][f"llmbar/{file.name}"] for file in files)
    # 70 and 104 records by the README, none left out for another reason than the model's 512 tokens.
    assert natural["n"] + natural["too_long"] == 70
    assert neighbor["n"] + neighbor["too_long"] == 104
    assert natural["left_out"] == neighbor["left_out"] == {}
    assert neighbor["n"] > 30
    for entry in (natural, neighbor):
        assert 0 <= entry["ci"][0] <= entry["accuracy"] <= entry["ci"][1] <= 1


def test_ties_and_broken_records_are_counted_and_no_pair_is_an_error(evaluated, scorer, tmp_path, capsys):
    folder = tmp_path / "graded"
    folder.mkdir()
    row = {"prompt": "Hi", "completion_a": "Hello.", "completion_b": "No.", "preference": "tie"}
    lines = [row | {"preference": "b-is-better"}, row, row | {"completion_b": "Hello.", "preference": "a-is-better"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "nonsense\n")
    entry = evaluated(folder / "rows.jsonl")["files"]["graded/rows.jsonl"]
    assert entry["n"] == 1
    assert entry["left_out"] == {"identical_replies": 1, "none_tie": 1, "not_json": 1}
    (folder / "none.jsonl").write_text(json.dumps(row) + "\n")
    assert cli.main(["evaluate-pm", str(folder / "none.jsonl"), "--preference-model", str(scorer)]) == 2
    assert "none.jsonl holds no pair of which one side is better" in capsys.readouterr().err


def test_without_a_preference_model_it_says_what_to_do(home, database_url, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DATABASE_URL", database_url)
    (tmp_path / "x.jsonl").touch()
    assert cli.main(["evaluate-pm", str(tmp_path / "x.jsonl")]) == 2
    assert "There is no preference model yet" in capsys.readouterr().err
