"""In how much of a cycle nothing is at work: between stages, and within them while their jobs wait to be run.

    python -m benchmarks.idle_time HOME

HOME is that of a demo or of an instance that is not up. Taken from the ledger are the times of each stage
and of its job: idle are the seconds in which no stage is at work, and those of stages with a job in which their job is
not (its run waits for a worker, and what it made is taken into the store). Runs that waited for people are their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cycles.cost import FIRST_STAGE
from orchestrator.instance.postgres import EmbeddedPostgres
from orchestrator.instance.postgres_files import pid_file, works_in


@dataclass(frozen=True)
class Idle:
    """One run of a cycle: its stages, its seconds on the clock, and those in which nothing was at work."""

    stages: int
    seconds: float
    between: float
    """No stage was at work."""
    waiting: float
    """Stages were, whose jobs were not."""
    most: tuple[float, str]
    """The stage with a job that waited longest, with its seconds."""

    @property
    def per_stage(self) -> float:
        return (self.between + self.waiting) / self.stages

    @property
    def share(self) -> float:
        return (self.between + self.waiting) / self.seconds


def idle_of(stages: Sequence[t.Stage]) -> Idle:
    """Of the stages of one run, in the order in which they began; of those side by side each waits for itself."""
    spans = [(stage.started_at, stage.ended_at) for stage in stages if stage.ended_at is not None]
    seconds = (max(end for _, end in spans) - spans[0][0]).total_seconds()
    waits = [
        ((stage.ended_at - stage.started_at).total_seconds() - stage.job_seconds, stage.name)
        for stage in stages
        if stage.ended_at is not None and stage.job_seconds is not None
    ]
    waiting = sum(wait for wait, _ in waits)
    return Idle(len(spans), seconds, seconds - _covered(spans), waiting, max(waits, default=(0.0, "none")))


def _covered(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Seconds that lie within at least one of the spans, which are in the order of their beginnings."""
    covered, until = 0.0, spans[0][0]
    for begin, end in spans:
        covered += max(0.0, (end - max(begin, until)).total_seconds())
        until = max(until, end)
    return covered


def runs_of(session: Session) -> Iterator[tuple[int, list[t.Stage]]]:
    """(cycle, stages) of each run that came to its end, in the order of the ledger."""
    rows = select(t.Stage, t.Cycle.number).join(t.Cycle, t.Cycle.id == t.Stage.cycle_id).order_by(t.Stage.id)
    runs: list[tuple[int, list[t.Stage]]] = []
    for stage, number in session.execute(rows):
        if stage.name == FIRST_STAGE:
            runs.append((number, []))
        if runs and runs[-1][0] == number:
            runs[-1][1].append(stage)
    yield from ((number, stages) for number, stages in runs if all(stage.ended_at for stage in stages))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle_time")
    parser.add_argument("home", type=Path)
    home = parser.parse_args(arguments).home
    running = pid_file(home / "postgres" / "data")
    if running and works_in(int(running[0]), home / "postgres" / "data"):
        parser.error(f"the instance in {home} is up; end it first")
    with EmbeddedPostgres(home / "postgres") as postgres:
        engine = create_engine(postgres.url)
        with Session(engine) as session:
            found = [(number, idle_of(stages)) for number, stages in runs_of(session)]
        engine.dispose()
    print("cycle  stages  seconds  between stages  waiting for jobs  idle a stage  share  longest wait")
    for number, idle in found:
        print(
            f"{number:5}  {idle.stages:6}  {idle.seconds:7.1f}  {idle.between:14.1f}  {idle.waiting:16.1f}  "
            f"{idle.per_stage:10.1f} s  {idle.share:5.1%}  {idle.most[0]:.1f} s {idle.most[1]}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
