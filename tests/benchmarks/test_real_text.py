"""What the runs on real text write: the paper's figure by hand, configurations read back, the page from its numbers."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from benchmarks import real_text
from orchestrator.config import parse_config
from orchestrator.world.settings import write_toml
from tests.paths import PROJECT_ROOT

DIGITS = 5e-4  # the hand-worked figures are rounded to three decimals


def test_the_papers_fit_by_hand() -> None:
    # 0.72 + 0.007 * ln(13e6 / 1e11) + 0.015 * ln(44e3 / 8e4) = 0.72 - 0.0626 - 0.0090
    assert real_text.paper_accuracy(13e6, 44e3) == pytest.approx(0.648, abs=DIGITS)
    # 52 billion and 118 thousand: 0.72 - 0.0046 + 0.0058
    assert real_text.paper_accuracy(52e9, 118e3) == pytest.approx(0.721, abs=DIGITS)


@pytest.mark.parametrize("name", real_text.SIZES)
def test_every_size_is_a_configuration(name: str, tmp_path: Path) -> None:
    raw = real_text.configuration(name, tmp_path)
    write_toml(raw, tmp_path / "cycle.toml")
    assert tomllib.loads((tmp_path / "cycle.toml").read_text()) == raw
    pretrain = parse_config(raw).initial_policy.pretrain
    assert pretrain is not None
    assert pretrain.hidden_size == real_text.SIZES[name].hidden_size
    assert not [file for file in pretrain.files if "dev" in Path(file).name]  # the judged replies stay unread


def test_the_page_says_which_sizes_were_not_run() -> None:
    assert "Not run: small, 13m, 42m" in real_text.page([])


def test_the_page_is_what_its_numbers_say() -> None:
    explanation = PROJECT_ROOT / "docs" / "explanation"
    files = [explanation / "results" / f"{size}.json" for size in real_text.SIZES]
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    assert found
    assert real_text.page(found) == (explanation / "results.md").read_text()
