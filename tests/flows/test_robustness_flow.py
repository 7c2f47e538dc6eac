"""The robustness experiment before it has anything to work on; test_sections.py runs it to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flows.robustness import halves
from flows.running import InProcess
from orchestrator.config import CycleConfig, load_config
from orchestrator.errors import ArtifactError


def test_without_a_comparison_set_nothing_is_begun(
    database_url: str, home: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    config: CycleConfig = load_config(config_file)
    said: list[str] = []
    with pytest.raises(ArtifactError, match="no comparison set to split"):
        asyncio.run(halves(config, InProcess(said.append)))
    assert said == []
    assert list(home.iterdir()) == []


def test_a_report_in_a_terminal_has_no_picture_in_it() -> None:
    said: list[str] = []
    markdown = "# R\n\n![a (b)](data:image/png;base64,AAAA)\n\nCaption.\n\n![c](gap.png)\n"
    asyncio.run(InProcess(said.append).report("robustness", markdown))
    assert said == ["# R\n\nCaption.\n\n![c](gap.png)\n"]
