"""Who is at work on a cycle now, on whichever machine: runs and stages hold it by an advisory lock in the database.

Postgres frees the lock with the connection, so that a killed process leaves nothing behind. What is written about a
cycle is no such sign: a stage whose process was killed stays "running" in its row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db.session import make_engine
from orchestrator.settings import Settings

# Any number that nothing else in the database uses as the first half of an advisory lock.
AT_WORK = 0x776F726B  # "work"
# Postgres keeps this much of an application's name.
LONGEST_NAME = 63

_TAKE = text("select set_config('application_name', :name, false), pg_advisory_lock_shared(:key, :cycle)")
_LEAVE = text("select pg_advisory_unlock_shared(:key, :cycle)")
_HOLDERS = text(
    "select a.application_name from pg_locks l join pg_stat_activity a on a.pid = l.pid "
    "where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.classid = :key and l.objid = :cycle "
    "and l.database = (select oid from pg_database where datname = current_database()) order by a.backend_start"
)


@contextmanager
def at_work(cycle_id: int, name: str) -> Iterator[None]:
    """Be seen at work on a cycle by this name while in here."""
    engine = make_engine(Settings.from_env().require_database_url(), pool_size=1)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(_TAKE, {"name": name[:LONGEST_NAME], "key": AT_WORK, "cycle": cycle_id})
            try:
                yield
            finally:
                # Postgres would notice the end of the connection too, a moment later.
                with suppress(OperationalError):
                    connection.execute(_LEAVE, {"key": AT_WORK, "cycle": cycle_id})
    finally:
        engine.dispose()


def who_is_at_work(session: Session, cycle_id: int) -> list[str]:
    """The names of the runs and stages that are at work on a cycle, the oldest first."""
    return list(session.scalars(_HOLDERS, {"key": AT_WORK, "cycle": cycle_id}))
