"""PPO runs to follow: by the rows that their worker tells, from any machine, or without a database by their files.

Read by `orchestrator cycle watch`; how their lines become a table is in `ppo_progress.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, Protocol, TypedDict, cast

from sqlalchemy import func, select

from db import tables as t
from models.policy.results import PPOResult
from models.runtime.results import result_from_json
from orchestrator.cycles.presence import who_is_at_work
from orchestrator.database import database
from orchestrator.instance.training_jobs import is_running

State = Literal["running", "ended", "died"]
STAGE = "train_policy"
REPORT = "write_report"
PPO_KEY = "objective/kl"
GO_ON = "Run the cycle again to continue from its last checkpoint."


class MetricsLine(TypedDict):
    """A line of a job's metrics.jsonl: besides these its numbers, by the names that the job gives them."""

    step: int
    stopped: NotRequired[str | None]
    """The tripwire that ended PPO there."""
    recovered: NotRequired[str | None]
    """Why PPO went back to earlier weights there."""


class Run(Protocol):
    """A PPO run, wherever it is."""

    def title(self) -> str:
        """What it is: its cycle where that is known, and how many iterations it has."""

    def lines(self) -> list[MetricsLine]:
        """What it has measured so far, an object per iteration."""

    def state(self) -> State:
        """Whether it goes on, has written its result, or ended without one: killed, or an error."""

    def last_words(self, state: State) -> str:
        """How a run that goes on no more came out."""


def _ended(samples: int, score: float, kl_nats: float, stopped: str | None) -> str:
    return f"ended after {samples} samples; its snapshot: score {score:.3f}, KL {kl_nats:.3f} nats" + (
        f"; stopped by a tripwire: {stopped}" if stopped else ""
    )


@dataclass(frozen=True)
class BeforePPO:
    """How far the open cycle is from PPO."""

    number: int
    stage: str | None
    """The newest stage, reports aside; None before the first."""
    stopped: bool
    """Whether that stage failed."""
    awaited: bool
    """Whether its PPO is still to tell its first line."""


def before_ppo() -> BeforePPO | None:
    """The open cycle; None where none is open."""
    with database() as session:
        cycle = session.scalars(select(t.Cycle).where(t.Cycle.state == "open")).one_or_none()
        if cycle is None:
            return None
        rows = list(session.scalars(select(t.Stage).where(t.Stage.cycle_id == cycle.id).order_by(t.Stage.id)))
        stages = [row for row in rows if row.name != REPORT]
        ppo = next((row for row in reversed(stages) if row.name == STAGE), None)
        silent = ppo is not None and session.get(t.StageMetrics, (ppo.id, 0)) is None
        return BeforePPO(
            number=cycle.number,
            stage=stages[-1].name if stages else None,
            stopped=bool(stages) and stages[-1].state == "failed",
            awaited=ppo is None or (silent and ppo.state == "running"),
        )


@dataclass(frozen=True)
class JobOfRun:
    """A job of a flow run that has told how far it is."""

    stage_id: int
    stage: str
    title: str
    """With its cycle, for a person: "cycle 3, train policy"."""
    progress: t.StageProgress
    num_lines: int
    """Lines of its metrics that were told."""

    @property
    def share(self) -> float:
        """How much of its present phase is done, 0 to 1."""
        return min(1.0, self.progress.step / self.progress.steps) if self.progress.steps else 0.0


def jobs_of_runs(flow_run_ids: Iterable[str]) -> list[JobOfRun]:
    """The jobs of these Prefect flow runs that have told how far they are, in the order in which they began."""
    with database() as session:
        counted = select(func.count()).where(t.StageMetrics.stage_id == t.Stage.id).scalar_subquery()
        rows = session.execute(
            select(t.Stage, t.Cycle.number, t.StageProgress, counted)
            .join(t.Cycle, t.Cycle.id == t.Stage.cycle_id)
            .join(t.StageProgress, t.StageProgress.stage_id == t.Stage.id)
            .where(t.Stage.flow_run_id.in_(list(flow_run_ids)))
            .order_by(t.Stage.id)
        )
        return [
            JobOfRun(stage.id, stage.name, f"cycle {number}, {stage.name.replace('_', ' ')}", progress, lines)
            for stage, number, progress, lines in rows
        ]


def measured_by(stage_id: int) -> list[MetricsLine]:
    """What a stage's job has measured so far, an object per line."""
    with database() as session:
        query = select(t.StageMetrics.numbers).where(t.StageMetrics.stage_id == stage_id)
        return cast(list[MetricsLine], list(session.scalars(query.order_by(t.StageMetrics.line))))


@dataclass(frozen=True)
class ToldRun:
    """A run by its rows."""

    stage_id: int

    @classmethod
    def newest(cls) -> ToldRun | None:
        """The run that began last among those that have told a line."""
        with database() as session:
            told = select(t.StageMetrics.stage_id).where(t.StageMetrics.line == 0)
            query = select(t.Stage.id).where(t.Stage.name == STAGE, t.Stage.id.in_(told))
            found = session.scalars(query.order_by(t.Stage.id.desc()).limit(1)).first()
        return None if found is None else cls(found)

    def title(self) -> str:
        """What it is: its cycle where that is known, and how many iterations it has."""
        with database() as session:
            stage = session.get_one(t.Stage, self.stage_id)
            number = session.get_one(t.Cycle, stage.cycle_id).number
            progress = session.get(t.StageProgress, self.stage_id)
        of = "" if progress is None or progress.steps is None else f", {progress.steps} iterations"
        return f"PPO, cycle {number}{of}"

    def lines(self) -> list[MetricsLine]:
        """What it has measured so far, an object per iteration."""
        return measured_by(self.stage_id)

    def state(self) -> State:
        """Whether it goes on, has written its result, or ended without one: killed, or an error."""
        with database() as session:
            stage = session.get_one(t.Stage, self.stage_id)
            if stage.state == "running":
                return "running" if STAGE in who_is_at_work(session, stage.cycle_id) else "died"
            return "died" if stage.state == "failed" else "ended"

    def last_words(self, state: State) -> str:
        """How a run that goes on no more came out."""
        with database() as session:
            stage = session.get_one(t.Stage, self.stage_id)
            artifact = session.get(t.Artifact, stage.artifact_id) if stage.artifact_id is not None else None
        if state == "died":
            return f"died: {stage.error or 'nobody runs this job any more and it has no result.'} {GO_ON}"
        if artifact is None:
            return "ended"
        found = result_from_json(PPOResult, artifact.results, where=f"the results of snapshot {artifact.id}")
        return _ended(found.samples, found.score_end, found.kl_nats, found.stopped)


@dataclass(frozen=True)
class FileRun:
    """A run by its work directory, as of a job that was started by hand."""

    folder: Path

    @classmethod
    def newest(cls, work: Path) -> FileRun | None:
        """The run that wrote last, or None where none has written on this machine."""
        files = sorted(work.glob("*/metrics.jsonl"), key=lambda file: file.stat().st_mtime, reverse=True)
        runs = (cls(file.parent) for file in files)
        return next((run for run in runs if any(PPO_KEY in line for line in run.lines()[:1])), None)

    def title(self) -> str:
        """What it is: how many iterations it has, and its file."""
        parts = ["PPO"]
        try:
            spec = json.loads((self.folder / "spec.json").read_text(encoding="utf-8"))
            parts.append(f"{spec['settings']['iterations']} iterations")
        except FileNotFoundError:
            # A run that was started by hand has its specification elsewhere.
            pass
        return ", ".join(parts) + f": {self.folder / 'metrics.jsonl'}"

    def lines(self) -> list[MetricsLine]:
        """The whole lines of its metrics.jsonl; the last may be half written."""
        return read_lines(self.folder)

    def state(self) -> State:
        """Whether it goes on, has written its result, or ended without one: killed, or an error.

        A run that was started by hand has no lock that would tell; it counts as going on until it has ended.
        """
        running = is_running(self.folder)
        if running:
            return "running"
        try:
            # run.json is written after the last line. An older one is of a run that was done before in the same place.
            written, measured = (self.folder / name for name in ("run.json", "metrics.jsonl"))
            if written.stat().st_mtime_ns >= measured.stat().st_mtime_ns:
                return "ended"
        except FileNotFoundError:
            if not (self.folder / "metrics.jsonl").exists():
                return "died"
        return "died" if running is False else "running"

    def last_words(self, state: State) -> str:
        """How a run that goes on no more came out."""
        if state == "died":
            log = self.folder / "job.log"
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
            return (
                f"died: nobody runs this job any more and it has no result. {GO_ON} The last line of its log ({log}): "
                f"{lines[-1] if lines else 'none'}"
            )
        facts = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        if "samples" not in facts:
            return "ended"
        return _ended(facts["samples"], facts["score_end"], facts["kl_nats"], facts["stopped"])


def read_lines(folder: Path) -> list[MetricsLine]:
    """The whole lines of a job's metrics.jsonl; the last may be half written."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
