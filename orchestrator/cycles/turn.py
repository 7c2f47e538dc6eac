"""What the next run of the cycle flow has to do, and the lock that lets one run at a time do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import select, text

from db import tables as t
from db.session import make_engine
from orchestrator.config import CycleConfig
from orchestrator.cycles.record import anything_live, fresh_comparisons, open_cycle_id
from orchestrator.database import database
from orchestrator.errors import CycleError
from orchestrator.settings import Settings

# Any number that nothing else in the database uses as an advisory lock.
LOCK_KEY = 0x6379636C65  # "cycle"


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


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the cycle for this run. Postgres frees it with the connection, so a killed run leaves nothing behind.

    Raises:
        CycleError: another run of the cycle holds it.
    """
    engine = make_engine(Settings.from_env().require_database_url(), pool_size=1)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not connection.execute(text("select pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}).scalar_one():
                raise CycleError(
                    "Another run of the cycle is in progress; one cycle is open at a time. "
                    "Wait for it, or cancel it in the Prefect UI."
                )
            yield
    finally:
        engine.dispose()


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
