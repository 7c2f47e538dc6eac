"""What a cycle on a published model is asked for, and what it is judged by, by hand."""

from __future__ import annotations

import argparse
import gzip
import tomllib
from pathlib import Path

import pytest

from benchmarks import real_model
from models.preference.report import ScoredPair
from orchestrator.config import parse_config
from orchestrator.world.settings import write_toml


def pair(number: int, better: float, worse: float, length_difference: int) -> ScoredPair:
    return ScoredPair(str(number), "hh", "helpful", better, worse, length_difference, dialogue=number)


def test_the_difference_to_length_is_paired() -> None:
    pairs = [
        pair(0, 1.0, 0.0, 5),  # both right
        pair(1, 1.0, 0.0, -5),  # the model alone
        pair(2, 1.0, 0.0, -5),
        pair(3, 0.0, 1.0, 5),  # length alone
        pair(4, 0.0, 1.0, 0),  # wrong, and half right
        pair(5, 0.5, 0.5, 0),  # both half right
    ]
    # 0, 1, 1, -1, -0.5 and 0: a mean of 1/12, and squares about it of 1/144, 121/144 twice, 169/144, 49/144 and 1/144,
    # together 77/24 of five degrees of freedom.
    difference, low, high = real_model.paired_difference(pairs)
    assert difference == pytest.approx(1 / 12)
    half = 2.5706 * (77 / 24 / 5 / 6) ** 0.5  # Student's t at 0.975
    assert (low, high) == (pytest.approx(1 / 12 - half, abs=1e-3), pytest.approx(1 / 12 + half, abs=1e-3))


def test_a_part_is_drawn_by_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    file = tmp_path / "train_a.jsonl.gz"
    lines = [f"{number}\n" for number in range(100)]
    with gzip.open(file, "wt") as opened:
        opened.writelines(lines)
    half = real_model.part_of(file, 0.5, 0)
    assert len(half) == 50
    assert half == sorted(half, key=int)
    assert half == real_model.part_of(file, 0.5, 0)
    assert half != real_model.part_of(file, 0.5, 1)


def test_its_configuration_is_one(tmp_path: Path) -> None:
    args = argparse.Namespace(model=tmp_path, seed=3, iterations=2, reply_tokens=16, threads=2)
    raw = real_model.configuration(args)
    write_toml(raw, tmp_path / "cycle.toml")
    assert tomllib.loads((tmp_path / "cycle.toml").read_text()) == raw
    assert parse_config(raw).ppo.iterations == 2
