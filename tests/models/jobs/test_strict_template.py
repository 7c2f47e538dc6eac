"""A template that takes no system message and no two turns of one role costs the records that have them, and no job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from models.chat.format import ChatFormat, TemplateRefusal
from models.jobs import (
    check_preference_model,
    evaluate,
    fit_ood_detector,
    make_distillation_set,
    train_policy,
    train_preference_model,
    write_prompts,
)
from models.runtime.job import Job, JobError
from tests.folders import contents
from tests.models.marked_words import write_scorer
from tests.models.ppo_runs import QUICK
from tests.models.preference_world import polite_comparisons, write_comparison_set
from tests.models.tiny_folders import prepare, write_llama

STRICT = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('No system role') }}{%- endif -%}"
    "{%- for message in messages -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Roles must alternate') }}{%- endif -%}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>{{ message['content'] | trim }}<|eot_id|>"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>{%- endif -%}"
)
TWICE = "the roles user, user, assistant: Roles must alternate"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def strict_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_llama(tmp_path_factory.mktemp("strict"), template=STRICT)
    return prepare(source, tmp_path_factory.mktemp("strict-policy"))


@pytest.fixture(scope="module")
def strict_scorer_dir(strict_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scorer(strict_dir, tmp_path_factory.mktemp("strict-scorer"))


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def start(name: str, job: ModuleType, inputs: dict[str, Path], **settings: Any) -> tuple[dict[str, Any], Path]:
        out = tmp_path / name
        out.mkdir()
        spec = {"inputs": {role: str(path) for role, path in inputs.items()}, "settings": settings, "device": "cpu"}
        made = Job(spec, out)
        made.prepare_process()
        job.run(made)
        return json.loads((out / "result" / "results.json").read_text()), out / "result"

    yield start
    torch.use_deterministic_algorithms(False)


Run = Callable[..., tuple[dict[str, Any], Path]]


def with_refused(records: list[dict[str, Any]], split: str, number: int) -> list[dict[str, Any]]:
    """The records, and among them some of the split with two questions in a row or a system message."""
    odd = [record | {"id": f"odd-{record['id']}"} for record in records if record["split"] == split][:number]
    before = [user("Are you there?"), {"role": "system", "content": "Be kind."}]
    for place, record in enumerate(odd):
        record["prompt"] = [before[place % 2], *record["prompt"]]
    return [records[0], *odd, *records[1:]]


def prompt_set(folder: Path, prompts: list[list[dict[str, str]]]) -> Path:
    folder.mkdir()
    lines = [
        {"id": f"{number:03}", "kind": "helpful", "split": split, "messages": messages}
        for number, messages in enumerate(prompts)
        for split in ("train", "held_out")
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = {split: {"helpful": len(prompts), "harmless": 0} for split in ("train", "held_out")}
    manifest = {"num_prompts": 2 * len(prompts), "num_train": len(prompts), "counts": counts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


PLAIN = [[user(f"What is {number} plus four?")] for number in range(12)]
ODD = [[user("Hello."), user("Are you there?")], [{"role": "system", "content": "Be kind."}, user("Hello.")]]


def test_the_folder_is_not_in_what_is_published(strict_dir: Path) -> None:
    with pytest.raises(TemplateRefusal, match="refuses a dialogue with the roles user, user") as refused:
        ChatFormat.load(strict_dir).encode(ODD[0], reply=True)  # type: ignore[arg-type]
    assert refused.value.reason == TWICE
    assert str(strict_dir) in str(refused.value)


def test_a_preference_model_is_that_of_the_records_that_are_taken(run: Run, strict_dir: Path, tmp_path: Path) -> None:
    records = polite_comparisons(24, 6)
    plain = write_comparison_set(tmp_path / "plain", records)
    mixed = write_comparison_set(tmp_path / "mixed", with_refused(with_refused(records, "train", 3), "held_out", 1))
    reference = tmp_path / "reference"
    reference.mkdir()
    lines = with_refused(records[-6:], "held_out", 1)
    (reference / "reference.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    without, with_them = (
        run(
            f"run-{path.name}",
            train_preference_model,
            {"initial": strict_dir, "comparisons": path, "reference": reference},
        )
        for path in (plain, mixed)
    )
    assert with_them[0]["refused"] == {
        "train": {"count": 3, "first": TWICE},
        "held_out": {"count": 1, "first": TWICE},
    }
    assert "refused" not in without[0]
    assert with_them[0]["reference"]["refused"] == {"count": 1, "first": TWICE}
    assert with_them[0]["reference"]["num_pairs"] == 6
    assert (with_them[0]["num_train"], with_them[0]["num_held_out"]) == (24, 6)
    differing = {"results.json", "README.md"}
    mine, theirs = (contents(folder) for _, folder in (without, with_them))
    assert {name for name in mine if mine[name] != theirs[name]} <= differing


def test_where_everything_is_refused_the_job_says_so(run: Run, strict_dir: Path, tmp_path: Path) -> None:
    records = polite_comparisons(4, 2)
    for record in records:
        record["prompt"] = [user("Hello."), *record["prompt"]]
    comparisons = write_comparison_set(tmp_path / "set", records)
    with pytest.raises(JobError, match="the chat template refuses 4, the first with the roles user, user, assistant"):
        run("refused", train_preference_model, {"initial": strict_dir, "comparisons": comparisons})


def test_a_check_scores_the_pairs_that_are_taken(run: Run, strict_scorer_dir: Path, tmp_path: Path) -> None:
    records = with_refused(polite_comparisons(0, 6), "held_out", 2)
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    results, _ = run("check", check_preference_model, {"preference_model": strict_scorer_dir, "pairs": pairs})
    assert (results["n"], results["refused"]) == (6, {"count": 2, "first": TWICE})
    assert results["refused_by_source"] == {"world": 2}
    comparisons = write_comparison_set(tmp_path / "set", records)
    inputs = {"preference_model": strict_scorer_dir, "comparisons": comparisons}
    results, _ = run("shards", check_preference_model, inputs, shards=["shards/00000.jsonl"])
    assert (results["n"], results["refused"]["count"]) == (6, 2)


def test_ppo_and_evaluation_ask_the_prompts_that_are_taken(
    run: Run, strict_dir: Path, strict_scorer_dir: Path, tmp_path: Path
) -> None:
    records = with_refused(polite_comparisons(2, 8), "held_out", 8)
    inputs = {
        "initial": strict_dir,
        "preference_model": strict_scorer_dir,
        "prompts": prompt_set(tmp_path / "prompts", [*ODD, *PLAIN]),
        "comparisons": write_comparison_set(tmp_path / "set", records),
    }
    quick = QUICK | {"iterations": 1, "logp_every": 1, "logp_pairs": 8}
    trained, folder = run("ppo", train_policy, inputs, **quick)
    assert trained["prompts_refused"]["count"] == 2
    assert trained["logp_accuracy"]["pairs"] == {"helpful": 8}
    assert trained["logp_accuracy"]["refused"]["count"] > 0
    judged, _ = run("evaluate", evaluate, inputs | {"policy": folder}, max_reply_tokens=4)
    assert judged["prompts_refused"] == {"count": 2, "first": TWICE}
    assert judged["num_prompts"] == 12


def test_a_detector_a_distillation_set_and_written_prompts_pass_over_what_is_refused(
    run: Run, strict_dir: Path, tmp_path: Path
) -> None:
    prompts = prompt_set(tmp_path / "prompts", [*ODD, *PLAIN])
    fitted, _ = run("detector", fit_ood_detector, {"policy": strict_dir, "prompts": prompts})
    assert fitted["refused"] == {"count": 4, "first": TWICE}

    text, prompt = tmp_path / "text", tmp_path / "prompt"
    for folder in (text, prompt):
        folder.mkdir()
    answered = [{"messages": [*messages, {"role": "assistant", "content": "seven"}]} for messages in [*ODD, *PLAIN]]
    (text / "dialogues.jsonl").write_text("".join(json.dumps(record) + "\n" for record in answered))
    turns = [user("Hello."), {"role": "assistant", "content": "Good day."}]
    (prompt / "prompt.json").write_text(json.dumps({"version": "1", "messages": turns}))
    inputs = {"teacher": strict_dir, "prompt": prompt, "text": text}
    made, _ = run("distil", make_distillation_set, inputs, tokens=10**6, held_out_texts=2, max_tokens=64)
    assert made["refused"]["count"] == 2
    assert made["num_texts"] + made["held_out"] == 12

    # An opening alone may be refused too, by what it says.
    jinja = strict_dir / "chat_template.jinja"
    lazy = tmp_path / "lazy"
    lazy.mkdir()
    for path in strict_dir.iterdir():
        (lazy / path.name).write_bytes(path.read_bytes())
    refuses = "{%- if 'plus' in messages[0]['content'] and '1' in messages[0]['content'] -%}{{ raise_exception('x') }}"
    (lazy / "chat_template.jinja").write_text(refuses + "{%- endif -%}" + jinja.read_text())
    written, _ = run(
        "write",
        write_prompts,
        {"policy": lazy, "prompts": prompts},
        num_written=2,
        max_prompt_tokens=32,
    )
    # 1, 10 and 11.
    assert written["refused"] == {"count": 3, "first": "the roles user: x"}
