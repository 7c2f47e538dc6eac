"""What becomes of an open cycle that no run goes on with: what a cancelled run says of it, and when it is given up.

What is open and at work now is told by `orchestrator/store/live.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import CycleConfig
from orchestrator.cycles.presence import who_is_at_work
from orchestrator.cycles.record import cancel_cycle, in_the_way, open_cycle_of
from orchestrator.database import database
from orchestrator.store.acts import Actor
from orchestrator.store.approvals import waiting

ITSELF = Actor("program", "machine", "program")
USUAL_IDLE = timedelta(hours=24)


def left_by_run(flow_run_id: str) -> str | None:
    """What a run that was cancelled leaves behind; None where it had taken up no cycle."""
    runs = select(t.CycleRun.cycle_id).where(t.CycleRun.flow_run_id == flow_run_id)
    stages = select(t.Stage.cycle_id).where(t.Stage.flow_run_id == flow_run_id)
    with database() as session:
        cycle = session.scalars(
            select(t.Cycle).where(t.Cycle.id.in_(runs.union(stages))).order_by(t.Cycle.id.desc()).limit(1)
        ).first()
    if cycle is None:
        return None
    if cycle.state != "open":
        return f"Cycle {cycle.number} is {cycle.state}. {cycle.note or ''}".strip()
    return (
        f"This run is cancelled; cycle {cycle.number} is open all the same. The next run with its configuration goes "
        f"on with it; to give it up: `cancel-cycle` in the Prefect UI, cycle {cycle.number}, or `orchestrator cycle "
        f"cancel {cycle.number}`."
    )


def give_up_abandoned(config: CycleConfig) -> str | None:
    """Give up the cycle that is in this configuration's way, where it is abandoned; says so in a line.

    Abandoned is a cycle that no run works on, that waits for nobody's approval, and that has come no further for
    `cycle.abandon_after_hours`.
    """
    other, idle = in_the_way(config), longest_idle(config)
    if other is None or idle is None:
        return None
    with database() as session:
        cycle = open_cycle_of(session)
        if cycle is None or who_is_at_work(session, cycle.id) or waiting(session):
            return None
        since = last_progress(session, cycle.id)
    if datetime.now(UTC) - since < idle:
        return None
    why = f"nothing came of it since {_time(since)}, and a scheduled run has another configuration."
    cancel_cycle(other.number, ITSELF, why)
    return f"Cycle {other.number} is given up by itself: {why}"


def longest_idle(config: CycleConfig) -> timedelta | None:
    """For how long an open cycle may come no further; None where it is never given up by itself.

    24 hours where not configured, so that a weekly schedule finds its way free; half the period of a shorter one.
    """
    hours = config.cycle.abandon_after_hours
    if hours is not None:
        return timedelta(hours=hours) if hours > 0 else None
    return min(USUAL_IDLE, config.schedule.period() / 2)


def last_progress(session: Session, cycle_id: int) -> datetime:
    """When something of a cycle last began, ended, told how far it was, or was decided."""
    stages = select(func.max(t.Stage.started_at), func.max(t.Stage.ended_at), func.max(t.StageProgress.told_at))
    told = session.execute(
        stages.outerjoin(t.StageProgress, t.StageProgress.stage_id == t.Stage.id).where(t.Stage.cycle_id == cycle_id)
    ).one()
    decided = session.scalars(select(func.max(t.Decision.created_at)).where(t.Decision.cycle_id == cycle_id)).one()
    begun = session.get_one(t.Cycle, cycle_id).started_at
    return max(moment for moment in (begun, *told, decided) if moment is not None)


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
