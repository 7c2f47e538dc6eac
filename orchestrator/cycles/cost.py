"""What a cycle cost, in time: its stages, their jobs, and the raters who compared for it.

Times are in rows and in no artifact; whoever shows them reads them here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t

FIRST_STAGE = "prepare_initial_policy"


@dataclass(frozen=True)
class StageTime:
    """One attempt at a stage: its state, its seconds on the clock, and how many of them its job ran."""

    stage: str
    state: str
    run: int
    """Which run of the cycle, from 1; one that was started again takes its stages from the first one on."""
    seconds: float | None = None
    job_seconds: float | None = None


@dataclass(frozen=True)
class CycleCost:
    """The times of a cycle, added up."""

    stages: tuple[StageTime, ...]
    job_hours: float
    """Of jobs: on a worker with a GPU these are GPU hours, one job at a time."""
    rater_hours: float | None
    """From both replies shown to the choice, over the comparisons of the cycle's freeze; None where nobody timed it."""
    timed_comparisons: int


def stage_times(session: Session, cycle_id: int) -> list[StageTime]:
    """The cycle's stages in the order in which they began; those that ran side by side count the same seconds each."""
    times: list[StageTime] = []
    run = 0
    for stage in session.scalars(select(t.Stage).where(t.Stage.cycle_id == cycle_id).order_by(t.Stage.id)):
        run += stage.name == FIRST_STAGE
        seconds = (stage.ended_at - stage.started_at).total_seconds() if stage.ended_at else None
        times.append(StageTime(stage.name, stage.state, run, seconds, stage.job_seconds))
    return times


def cost_of(session: Session, cycle_id: int) -> CycleCost:
    """What the cycle cost so far."""
    stages = tuple(stage_times(session, cycle_id))
    timed, milliseconds = session.execute(
        select(func.count(), func.sum(t.Comparison.duration_ms))
        .join(t.FrozenComparison, t.Comparison.id.between(t.FrozenComparison.first_id, t.FrozenComparison.last_id))
        .join(t.Freeze, t.Freeze.id == t.FrozenComparison.freeze_id)
        .where(t.Freeze.cycle_id == cycle_id, t.Comparison.duration_ms.is_not(None))
    ).one()
    rater_hours = float(milliseconds or 0) / 3.6e6 if timed else None
    job_hours = sum(stage.job_seconds or 0.0 for stage in stages) / 3600
    return CycleCost(stages, job_hours, rater_hours, timed)
