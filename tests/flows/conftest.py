"""Fixtures of the flow tests: the configuration of the tiny cycle (tiny_cycle.py), and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.instance.up import Instance
from tests.flows.tiny_cycle import CONFIG, question, run_command


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cycle's configuration."""
    folder = tmp_path_factory.mktemp("tiny config")
    with (folder / "dialogues.jsonl").open("w") as file:
        for number in range(60):
            messages = [
                {"role": "user", "content": question(1000 + number)},
                {"role": "assistant", "content": f"Thank you for asking: {number}."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    (folder / "tiny.toml").write_text(CONFIG)
    return folder / "tiny.toml"


@pytest.fixture
def orchestrator(instance: Instance) -> Callable[..., str]:
    """`orchestrator(*words, status=0)` runs a command against the instance and gives what it printed."""

    def run(*words: str, status: int = 0) -> str:
        return run_command(instance.home, *words, status=status)

    return run
