"""Tiny models for the tests of models/ (tiny_folders.py), made and prepared once per session."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.marked_words import write_prompts, write_scorer
from tests.models.ppo_runs import run_ppo
from tests.models.tiny_folders import LLAMA3, prepare, write_llama, write_qwen2


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tiny Llama with a chat template, not yet prepared."""
    return write_llama(tmp_path_factory.mktemp("llama"), template=LLAMA3)


@pytest.fixture(scope="session")
def llama_without_pad_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tiny Llama whose tokenizer has no pad token."""
    return write_llama(tmp_path_factory.mktemp("llama-no-pad"), template=LLAMA3, pad=False)


@pytest.fixture(scope="session")
def llama_without_template_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tiny Llama (a base model) without a chat template."""
    return write_llama(tmp_path_factory.mktemp("llama-no-template"), template=None)


@pytest.fixture(scope="session")
def qwen2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tiny Qwen2 in bfloat16, not yet prepared."""
    return write_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="session")
def policy_dir(llama_without_template_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny initial policy that most tests use: Llama, hidden 64, 2 layers, our own chat template."""
    return prepare(llama_without_template_dir, tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def qwen2_policy_dir(qwen2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen2 as an initial policy."""
    return prepare(qwen2_dir, tmp_path_factory.mktemp("qwen2-policy"))


@pytest.fixture(scope="session")
def scorer_dir(policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preference model that likes marked tokens (marked_words.py)."""
    return write_scorer(policy_dir, tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="session")
def prompts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prompt set of both kinds."""
    return write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture
def train(policy_dir: Path, scorer_dir: Path, prompts_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Runs PPO in this process: train(name="run", seed=0, device=..., **settings) -> its output directory."""

    def start(  # type: ignore[no-untyped-def]
        name="run", *, seed=0, device="cpu", initial=policy_dir, scorer=scorer_dir, **settings
    ):
        inputs = {"initial": initial, "preference_model": scorer, "prompts": prompts_dir}
        return run_ppo(tmp_path / name, inputs, settings, seed, device)

    yield start
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """Writes a spec.json: write_spec(job, inputs={...}, settings={...}, seed=0) -> its path."""

    def write(job: str, *, inputs: dict[str, Path], seed: int = 0, threads: int = 1, **settings: Any) -> Path:
        spec = {
            "job": job,
            "inputs": {name: str(path) for name, path in inputs.items()},
            "settings": settings,
            "seed": seed,
            "threads": threads,
        }
        path = tmp_path / f"{job}.spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        return path

    return write
