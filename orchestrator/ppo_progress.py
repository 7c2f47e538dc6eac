"""The lines that PPO writes while it runs, as a table for a terminal. Read by `orchestrator cycle watch`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Title, key in metrics.jsonl, format. A column that a run does not have (no watcher) stays out of its table.
COLUMNS = (
    ("step", "step", "d"),
    ("score", "objective/scores", ".3f"),
    ("KL", "objective/kl", ".3f"),
    ("entropy", "watch/entropy_share", ".0%"),
    ("tokens", "reply_tokens", ".1f"),
    ("cut off", "truncated", ".0%"),
    ("repeats", "watch/repeated_ngrams", ".0%"),
    ("alike", "watch/duplicates", ".0%"),
    ("clipped", "policy/clipfrac_avg", ".0%"),
    ("watcher", "watch/score_watcher", ".3f"),
    ("gap", "watch/twin_gap", ".3f"),
    ("logp helpful", "watch/logp_accuracy_helpful", ".3f"),
    ("logp harmless", "watch/logp_accuracy_harmless", ".3f"),
    ("wires", "watch/wires_beyond", ".0f"),
)
PPO_KEY = "objective/kl"


def newest_run(work: Path) -> Path | None:
    """The work directory of the PPO run that wrote last, or None where none has written on this machine."""
    files = sorted(work.glob("*/metrics.jsonl"), key=lambda file: file.stat().st_mtime, reverse=True)
    return next((file.parent for file in files if any(PPO_KEY in line for line in read_lines(file.parent)[:1])), None)


def read_lines(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl; the last may be half written."""
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def ended(run: Path) -> bool:
    """Whether the run has written its result: its side file appears just before."""
    return (run / "run.json").exists()


class Table:
    """Turns lines into rows as they come; columns are those of the first line."""

    def __init__(self) -> None:
        self._columns: list[tuple[str, str, str]] = []
        self._last_step = 0

    def rows(self, lines: list[dict[str, Any]]) -> Iterator[str]:
        """What is new among the run's lines. A run that was killed goes on at an earlier step, and says so."""
        if lines and lines[-1]["step"] < self._last_step:
            self._last_step = lines[-1]["step"]
            yield f"went on after step {self._last_step}"
        for line in lines:
            if line["step"] <= self._last_step:
                continue
            if not self._columns:
                self._columns = [column for column in COLUMNS if column[1] in line]
                yield "  ".join(f"{title:>{_width(title)}}" for title, _, _ in self._columns)
            self._last_step = line["step"]
            yield "  ".join(
                f"{_shown(line.get(key), form):>{_width(title)}}" for title, key, form in self._columns
            ).rstrip()


def _width(title: str) -> int:
    return max(len(title), 6)


def _shown(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)
