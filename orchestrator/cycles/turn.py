"""What the next run of the cycle flow has to do, and the lock that lets one run at a time do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from db import tables as t
from db.session import make_engine
from orchestrator.config import CycleConfig
from orchestrator.cycles.record import anything_live, fresh_comparisons, open_cycle_id, open_cycle_of
from orchestrator.database import database
from orchestrator.errors import CycleBusy, CycleError
from orchestrator.settings import Settings

# Any number that nothing else in the database uses as an advisory lock.
LOCK_KEY = 0x6379636C65  # "cycle"
# Each takes a place of the cpu pool while it waits; the cycle itself and the forms need the others.
MAX_QUEUED = 3

_KEY = {"key": LOCK_KEY}
_TRY = text("select pg_try_advisory_lock(:key)")
_WAIT = text("select pg_advisory_lock(:key)")
_QUEUED = text(
    "select count(*) from pg_locks where locktype = 'advisory' and not granted and objsubid = 1 "
    "and (classid::bigint << 32) + objid::bigint = :key "
    "and database = (select oid from pg_database where datname = current_database())"
)


@dataclass(frozen=True)
class Turn:
    """Begin a cycle, go on with the open one, begin week 0, or skip."""

    skip: bool
    week_zero: bool
    found: int
    wanted: int
    reason: str = ""


def turn_to_take(config: CycleConfig) -> Turn:
    """Decide from the rows alone; an open cycle is always gone on with."""
    fresh = fresh_comparisons(config)
    if fresh.enough or open_cycle_id() is not None:
        return Turn(False, False, *fresh)
    if not anything_live():
        return Turn(False, True, *fresh)
    return Turn(
        True,
        False,
        *fresh,
        f"{fresh.found} fresh comparisons; training needs {fresh.wanted} (cycle.min_comparisons). "
        "The live policy goes on.",
    )


@asynccontextmanager
async def one_at_a_time(
    second_trigger: str, say_queued: Callable[[str | None], Awaitable[None]]
) -> AsyncIterator[None]:
    """Hold the cycle for this run. Postgres frees it with the connection, so a killed run leaves nothing behind.

    Where another run holds it, this one says so and waits in a queue, first come, first served, or is refused:
    `cycle.second_trigger`.

    Raises:
        CycleBusy: another run holds it, and this one is refused, or the queue is full.
    """
    engine = make_engine(Settings.from_env().require_database_url(), pool_size=1)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not connection.execute(_TRY, _KEY).scalar_one():
                line = _in_progress()
                if second_trigger == "refuse":
                    raise CycleBusy(
                        f"{line} Nothing was begun: run this again when that one has ended. "
                        '`cycle.second_trigger = "queue"` lets a run wait instead.'
                    )
                if connection.execute(_QUEUED, _KEY).scalar_one() >= MAX_QUEUED:
                    raise CycleBusy(f"{line} {MAX_QUEUED} runs wait for its end already; no more are queued.")
                await say_queued(f"{line} This run begins when that one has ended.")
                await _wait_for_turn(connection)
                await say_queued(None)
            yield
    finally:
        engine.dispose()


async def _wait_for_turn(connection: Connection) -> None:
    try:
        await asyncio.to_thread(connection.execute, _WAIT, _KEY)
    except BaseException:
        # This run is being ended, and its process would wait for the thread.
        connection.connection.driver_connection.cancel()  # type: ignore[union-attr]
        raise


def _in_progress() -> str:
    with database() as session:
        cycle = open_cycle_of(session)
        if cycle is None:
            return "Another run of the cycle is in progress."
        return f"Cycle {cycle.number} is in progress, since {cycle.started_at:%Y-%m-%d %H:%M} UTC."


def artifacts_of_run(flow_run_id: str) -> dict[str, int]:
    """The artifacts that the stages of a Prefect flow run ended with, by stage; of a stage done twice, the later.

    Raises:
        CycleError: there are none; the run worked on another database.
    """
    with database() as session:
        found = session.execute(
            select(t.Stage.name, t.Stage.artifact_id)
            .where(t.Stage.flow_run_id == flow_run_id, t.Stage.state.in_(("done", "found")))
            .where(t.Stage.artifact_id.is_not(None))
            .order_by(t.Stage.id)
        )
        artifacts = {row.name: row.artifact_id for row in found}
    if not artifacts:
        raise CycleError(
            f"Prefect says that flow run {flow_run_id} completed, but it left no artifact in this database. "
            "Its worker must have the same DATABASE_URL."
        )
    return artifacts
