"""The lines that PPO writes while it runs, as a table for a terminal. Read by `orchestrator cycle watch`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from orchestrator.jobs import is_running

State = Literal["running", "ended", "died"]

# Title, key in metrics.jsonl, format. A column that a run does not have (no watcher) stays out of its table.
COLUMNS = (
    ("step", "step", "d"),
    ("score", "objective/scores", ".3f"),
    ("helpful", "objective/scores_helpful", ".3f"),
    ("harmless", "objective/scores_harmless", ".3f"),
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


def state_of(run: Path) -> State:
    """Whether a run goes on, has written its result, or ended without one: killed, or an error.

    A run that was started by hand has no lock that would tell; it counts as going on until it has ended.
    """
    running = is_running(run)
    if running:
        return "running"
    try:
        # run.json is written after the last line. An older one is of a run that was done before in the same place.
        if (run / "run.json").stat().st_mtime_ns >= (run / "metrics.jsonl").stat().st_mtime_ns:
            return "ended"
    except FileNotFoundError:
        if not (run / "metrics.jsonl").exists():
            return "died"
    return "died" if running is False else "running"


def last_words(run: Path, state: State) -> str:
    """How a run that goes on no more came out."""
    if state == "died":
        log = run / "job.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return (
            "died: nobody runs this job any more and it has no result. Run the cycle again to continue from its last "
            f"checkpoint. The last line of its log ({log}): {lines[-1] if lines else 'none'}"
        )
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if "samples" not in facts:
        return "ended"
    return (
        f"ended after {facts['samples']} samples; its snapshot: score {facts['score_end']:.3f}, KL "
        f"{facts['kl_nats']:.3f} nats" + (f"; stopped by a tripwire: {facts['stopped']}" if facts["stopped"] else "")
    )


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
            if line.get("stopped"):
                yield f"stopped: {line['stopped']}"


def _width(title: str) -> int:
    return max(len(title), 6)


def _shown(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)
