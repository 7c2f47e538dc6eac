"""Where the open cycle stands, in a line for people: since when, what works on it, and what becomes of it.

Also when an open cycle counts as abandoned: then a scheduled run in whose way it stands gives it up.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cronsim import CronSim
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import CycleConfig
from orchestrator.cycles.presence import who_is_at_work
from orchestrator.cycles.record import cancel_cycle, in_the_way, open_cycle_of
from orchestrator.database import database
from orchestrator.store.acts import Actor

ITSELF = Actor("schedule", "machine", "program")
USUAL_IDLE = timedelta(hours=24)


def open_cycle_line() -> str | None:
    """The open cycle, in a line of Markdown; None where none is open."""
    with database() as session:
        cycle = open_cycle_of(session)
        if cycle is None:
            return None
        working = who_is_at_work(session, cycle.id)
        waits = waits_for_approval(session, cycle.id)
    begun = f"Cycle {cycle.number} ({cycle.name}) is open since {_time(cycle.started_at)}"
    if working:
        return f"{begun}; at work: {', '.join(working)}."
    if waits:
        return f"{begun}, and waits for a person to decide."
    return f"{begun}, and nothing works on it. {_what_becomes_of(cycle.number)}"


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
    return f"This run is cancelled; cycle {cycle.number} is open all the same. {_what_becomes_of(cycle.number)}"


def waits_for_approval(session: Session, cycle_id: int) -> bool:
    """Whether a promotion of the cycle waits for a person."""
    decided = select(t.Decision.approval_id).where(t.Decision.approval_id.is_not(None))
    pending = select(t.Approval.id).where(t.Approval.cycle_id == cycle_id, t.Approval.id.not_in(decided))
    return session.scalars(pending.limit(1)).first() is not None


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
        if cycle is None or who_is_at_work(session, cycle.id) or waits_for_approval(session, cycle.id):
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
    slots = CronSim(config.schedule.cron, datetime.now(UTC))
    first, second = next(slots), next(slots)
    return min(USUAL_IDLE, (second - first) / 2)


def last_progress(session: Session, cycle_id: int) -> datetime:
    """When something of a cycle last began, ended or told how far it was."""
    stage = select(
        func.greatest(func.max(t.Stage.started_at), func.max(t.Stage.ended_at), func.max(t.StageProgress.told_at))
    )
    told = session.scalars(
        stage.outerjoin(t.StageProgress, t.StageProgress.stage_id == t.Stage.id).where(t.Stage.cycle_id == cycle_id)
    ).one()
    begun: datetime = session.get_one(t.Cycle, cycle_id).started_at
    return max(begun, told) if told is not None else begun


def _what_becomes_of(number: int) -> str:
    return (
        f"The next run with its configuration goes on with it; to give it up: `cancel-cycle` in the Prefect UI, cycle "
        f"{number}, or `orchestrator cycle cancel {number}`."
    )


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
