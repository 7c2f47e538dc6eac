"""Commands on a terminal that shows ASCII alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from orchestrator import cli
from orchestrator.conversations import contestants
from tests.paths import PROJECT_ROOT

ON_ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}


@pytest.fixture
def on_ascii(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs a command on a strict ASCII terminal; gives its status and what the terminal shows."""

    def run(*words: str) -> tuple[int, str]:
        shown = io.BytesIO()
        with monkeypatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, io.TextIOWrapper(shown, "ascii", "strict", write_through=True))
            try:
                status = cli.main(list(words))
            except SystemExit as ended:
                status = int(ended.code or 0)
            text = shown.getvalue().decode("ascii")
            for name in ("stdout", "stderr"):
                getattr(sys, name).detach()
        return status, text

    return run


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_every_command_tells_its_options(on_ascii: Callable[..., tuple[int, str]], name: str) -> None:
    status, text = on_ascii(*filter(None, [name]), "--help")
    assert status == 0
    assert "usage: " in text


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_scripts_are_printed(on_ascii: Callable[..., tuple[int, str]], shell: str) -> None:
    status, text = on_ascii("--completion", shell)
    assert status == 0
    assert "orchestrator" in text


def test_what_people_wrote_is_shown_in_letters_that_the_terminal_has(
    on_ascii: Callable[..., tuple[int, str]], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    name = "Zoë “Z” Straße → 東京 … 😀"
    with Session(create_engine(database_url)) as session, session.begin():
        contestants.add_endpoint(session, name, "https://models.example.com/v1", "m")
    status, text = on_ascii("contestant", "list")
    assert status == 0
    assert 'Zoe "Z" Stra?e -> ?? ... ?' in text
    status, text = on_ascii("contestant", "list", "--json")
    assert json.loads(text)[0]["name"] == name


def test_a_mistake_is_told(on_ascii: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    file = tmp_path / "größe….jsonl"
    status, text = on_ascii("check-data", str(file))
    assert status == 2
    assert "grosse" not in text
    assert "gro?e" in text


def test_a_long_record_in_quarantine_is_shown(tmp_path: Path, database_url: str) -> None:
    file = tmp_path / "records.jsonl"
    good = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    bad = {"chosen": "of no use – " + "ü" * 5000, "rejected": ""}
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in (good, bad)), encoding="utf-8")
    environment = os.environ | ON_ASCII | {"DATABASE_URL": database_url, "PYTHONPATH": str(PROJECT_ROOT)}

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "orchestrator.cli", *words]
        return subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)

    imported = run("import", str(file), "--format", "hh", "--question", "helpful")
    assert imported.returncode == 0, imported.stderr
    shown = run("quarantine")
    assert shown.returncode == 0, shown.stderr
    assert b"..." in shown.stdout
    shown.stdout.decode("ascii")
