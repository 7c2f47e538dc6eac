"""The lines that PPO writes while it runs, as a table for a terminal. Read by `orchestrator cycle watch`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select

from db import tables as t
from orchestrator.database import database
from orchestrator.instance.training_jobs import is_running
from orchestrator.reports.wording import number

State = Literal["running", "ended", "died"]

# Title, key in metrics.jsonl, format, and what it is. A column that a run does not have (no watcher) stays out of its
# table.
COLUMNS = (
    ("step", "step", "d", "iteration"),
    ("score", "objective/scores", ".3f", "mean PM score of the rollout, PM units"),
    ("helpful", "objective/scores_helpful", ".3f", "of its helpful prompts alone"),
    ("harmless", "objective/scores_harmless", ".3f", "of its red-team prompts alone"),
    ("KL", "objective/kl", ".3f", "to the initial policy, nats per reply"),
    ("entropy", "watch/entropy_share", ".0%", "over that of the first rollout"),
    ("tokens", "reply_tokens", ".1f", "mean length of replies"),
    ("cut off", "truncated", ".0%", "replies at ppo.max_reply_tokens"),
    ("repeats", "watch/repeated_ngrams", ".0%", "4-grams that their reply has said before"),
    ("alike", "watch/duplicates", ".0%", "replies that equal another one"),
    ("clipped", "policy/clipfrac_avg", ".0%", "tokens whose gradient was clipped away"),
    ("watcher", "watch/score_watcher", ".3f", "mean score by the watcher"),
    ("gap", "watch/twin_gap", ".3f", "the training PM's gain since the start less the watcher's"),
    ("logp helpful", "watch/logp_accuracy_helpful", ".3f", "held-out comparisons ordered rightly by the policy"),
    ("logp harmless", "watch/logp_accuracy_harmless", ".3f", "the same, harmless"),
    ("wires", "watch/wires_beyond", ".0f", "tripwires beyond their bound now"),
)
LEGEND_WIDTH = 120
PPO_KEY = "objective/kl"


def newest_run(work: Path) -> Path | None:
    """The work directory of the PPO run that wrote last, or None where none has written on this machine."""
    files = sorted(work.glob("*/metrics.jsonl"), key=lambda file: file.stat().st_mtime, reverse=True)
    return next((file.parent for file in files if any(PPO_KEY in line for line in read_lines(file.parent)[:1])), None)


@dataclass(frozen=True)
class OpenCycle:
    """How far the open cycle is from PPO."""

    number: int
    stage: str | None
    """The newest stage, reports aside; None before the first."""
    stopped: bool
    """Whether that stage failed."""
    ppo: str | None
    """State of the newest attempt at `train_policy`; None before the first."""
    work: str | None
    """Name of that attempt's work directory, or its beginning; None before it is known."""

    def awaited(self, run: Path | None) -> bool:
        """Whether PPO of this cycle is still to write its first line, `run` being the newest that wrote."""
        if self.ppo is None:
            return True
        return self.ppo == "running" and (run is None or self.work is None or not run.name.startswith(self.work))


def open_cycle() -> OpenCycle | None:
    """The open cycle, by the rows; None where none is open."""
    with database() as session:
        cycle = session.scalars(select(t.Cycle).where(t.Cycle.state == "open")).one_or_none()
        if cycle is None:
            return None
        rows = list(session.scalars(select(t.Stage).where(t.Stage.cycle_id == cycle.id).order_by(t.Stage.id)))
    stages = [row for row in rows if row.name != "write_report"]
    ppo = next((row for row in reversed(stages) if row.name == "train_policy"), None)
    return OpenCycle(
        number=cycle.number,
        stage=stages[-1].name if stages else None,
        stopped=bool(stages) and stages[-1].state == "failed",
        ppo=ppo.state if ppo else None,
        work=ppo.fingerprint if ppo else None,
    )


def title(run: Path, *, with_rows: bool) -> str:
    """What the run is: its cycle where the rows know it, how many iterations it has, and its file."""
    parts = []
    if with_rows:
        fingerprint = run.name.partition("-fresh-")[0]
        with database() as session:
            number = session.scalars(
                select(t.Cycle.number)
                .join(t.Stage, t.Stage.cycle_id == t.Cycle.id)
                .where(t.Stage.fingerprint == fingerprint)
                .order_by(t.Stage.id.desc())
                .limit(1)
            ).first()
        parts += [] if number is None else [f"cycle {number}"]
    try:
        spec = json.loads((run / "spec.json").read_text(encoding="utf-8"))
        parts.append(f"{spec['settings']['iterations']} iterations")
    except FileNotFoundError:
        # A run that was started by hand has its specification elsewhere.
        pass
    return ", ".join(["PPO", *parts]) + f": {run / 'metrics.jsonl'}"


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
    """Turns lines into rows as they come, under a legend; columns are those of the first line."""

    def __init__(self) -> None:
        self._columns: list[tuple[str, str, str, str]] = []
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
                legend = "; ".join(f"{title}: {meaning}" for title, _, _, meaning in self._columns)
                yield from textwrap.wrap(legend, LEGEND_WIDTH)
                yield "  ".join(f"{title:>{_width(title)}}" for title, *_ in self._columns)
            self._last_step = line["step"]
            yield "  ".join(
                f"{number(line.get(key), form, missing=''):>{_width(title)}}" for title, key, form, _ in self._columns
            ).rstrip()
            if line.get("stopped"):
                yield f"stopped: {line['stopped']}"


def _width(title: str) -> int:
    return max(len(title), 6)
