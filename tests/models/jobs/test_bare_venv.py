"""Every job runs in a virtual environment of torch and transformers alone, with nothing of ours but `models/`.

The environment is a real one whose site-packages hold links to the distributions that torch and transformers
require (their own requirements followed to the end) and to no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.environments import make_environment
from tests.paths import PROJECT_ROOT

CANARIES = ("prefect", "sqlalchemy", "fastapi", "orchestrator", "db", "psycopg2", "alembic")
# pydantic comes along (transformers -> huggingface-hub -> typer); tests/test_imports.py keeps it out of
# models/.
JOBS = ("prepare_policy", "pretrain", "train_preference_model", "check_preference_model", "train_policy", "evaluate")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the environment; `models` is the only package of ours that it can import."""
    folder = tmp_path_factory.mktemp("bare")
    site = make_environment(folder, {"torch", "transformers", "numpy", "safetensors"})
    (site / "models").symlink_to(PROJECT_ROOT / "models")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, llama_without_template_dir: Path) -> dict[str, Path]:
    """A dialogue file, a comparison set, a prompt set and orientation pairs, as small as they can be."""
    root = tmp_path_factory.mktemp("inputs")
    questions = [f"What is {number} plus one?" for number in range(48)]
    prompts = [[{"role": "user", "content": question}] for question in questions]
    answers = [
        ({"role": "assistant", "content": str(n + 1)}, {"role": "assistant", "content": "No."}) for n in range(48)
    ]
    comparisons = [
        {
            "id": f"c{number}",
            "split": "held_out" if number % 4 == 0 else "train",
            "split_key": f"{number:02x}",
            "source": "test",
            "tranche": "base",
            "question": "harmless" if number % 3 == 0 else "helpful",
            "strength": None,
            "rater": "r",
            "turn": 0,
            "prompt": prompt,
            "better": [better],
            "worse": [worse],
            "better_snapshot": None,
            "worse_snapshot": None,
        }
        for number, (prompt, (better, worse)) in enumerate(zip(prompts, answers, strict=True))
    ]
    kinds = [
        {"id": f"{n:02x}", "kind": c["question"], "split": c["split"], "messages": c["prompt"]}
        for n, c in enumerate(comparisons)
    ]
    write_jsonl(
        root / "text" / "dialogues.jsonl", [{"messages": [*p, a]} for p, (a, _) in zip(prompts, answers, strict=True)]
    )
    write_jsonl(root / "comparisons" / "shards" / "0.jsonl", comparisons)
    write_jsonl(root / "prompts" / "prompts.jsonl", kinds)
    write_jsonl(root / "pairs" / "pairs.jsonl", comparisons[:8])
    shard = root / "comparisons" / "shards" / "0.jsonl"
    manifest = {
        "format": 1,
        "num_comparisons": 48,
        "num_train": 36,
        "num_held_out": 12,
        "shards": [{"file": "shards/0.jsonl", "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(), "records": 48}],
        "excluded": {},
    }
    (root / "comparisons" / "manifest.json").write_text(json.dumps(manifest))
    (root / "prompts" / "manifest.json").write_text(json.dumps({"num_prompts": 48}))
    return {path.name: path for path in root.iterdir()} | {"source": llama_without_template_dir}


def write_jsonl(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_specs(inputs: dict[str, Path], work: Path) -> None:
    """One spec per job, each fed by the results of those before it."""
    results = {job: work / job / "result" for job in JOBS}
    policy, pm = {"initial": results["pretrain"]}, {"preference_model": results["train_preference_model"]}
    prompts = {"prompts": inputs["prompts"]}
    specs: dict[str, tuple[dict[str, Path], dict[str, Any]]] = {
        "prepare_policy": ({"source": inputs["source"]}, {}),
        "pretrain": (
            {"text": inputs["text"]},
            {"hidden_size": 32, "num_layers": 1, "vocab_size": 300, "batch_tokens": 256, "max_tokens": 128},
        ),
        "train_preference_model": (policy | {"comparisons": inputs["comparisons"]}, {"batch_pairs": 8}),
        "check_preference_model": (pm | {"pairs": inputs["pairs"]}, {}),
        "train_policy": (
            policy | pm | prompts,
            {"iterations": 1, "prompts_per_iteration": 8, "minibatch_replies": 8, "max_reply_tokens": 8},
        ),
        "evaluate": (
            policy | pm | prompts | {"policy": results["train_policy"]},
            {"num_prompts": 4, "max_reply_tokens": 8},
        ),
    }
    for job, (named, settings) in specs.items():
        (work / job).mkdir()
        paths = {name: str(path) for name, path in named.items()}
        spec = {"job": job, "inputs": paths, "settings": settings, "seed": 0, "threads": 1}
        (work / job / "spec.json").write_text(json.dumps(spec))


def run(python: Path, work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *arguments], cwd=work, env=environment, capture_output=True, text=True, check=False
    )


def test_environment_is_bare(bare_python: Path, tmp_path: Path) -> None:
    script = f"import importlib.util as u; print([n for n in {CANARIES!r} if u.find_spec(n)])"
    assert run(bare_python, tmp_path, "-c", script).stdout == "[]\n"


def test_every_job_runs_in_a_bare_environment(bare_python: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    """One after the other in one process, which saves five starts of torch."""
    write_specs(inputs, tmp_path)
    script = f"""
import importlib
from models.runtime.job import main
for job in {JOBS!r}:
    module = importlib.import_module(f"models.jobs.{{job}}")
    main(job, module.run, ["--spec", f"{{job}}/spec.json", "--out", job])
"""
    ended = run(bare_python, tmp_path, "-c", script)
    assert ended.returncode == 0, ended.stderr
    assert [job for job in JOBS if (tmp_path / job / "result" / "results.json").exists()] == list(JOBS)


@pytest.mark.slow
def test_every_job_is_a_command_in_a_bare_environment(
    bare_python: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    write_specs(inputs, tmp_path)
    for job in JOBS:
        command = ["-m", f"models.jobs.{job}", "--spec", f"{job}/spec.json", "--out", job]
        ended = run(bare_python, tmp_path, *command)
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / job / "result" / "results.json").exists()
