"""A transaction on the instance's database, and what it says when it can't be used, as an error in one line.

SQLAlchemy's errors are known by their names: it need not be imported to see that an error is none of its.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError, ServiceUnavailable
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# SQLSTATE values. Our triggers raise codes of their own, so plain `raise exception` is a migration's refusal.
RAISED_BY_A_MIGRATION = "P0001"


def as_operators_error(error: Exception) -> OrchestratorError | None:
    """The one-line error that stands for an error of the database, or None where it is something else."""
    if "UndefinedTable" in str(error):
        # A database that nobody migrated has no tables.
        return OrchestratorError("the database has no schema of ours, or an older one. Run `orchestrator migrate`.")
    original: Any = getattr(error, "orig", None)
    state = getattr(original, "pgcode", "")
    if state == RAISED_BY_A_MIGRATION:
        return OrchestratorError(f"The database was not migrated: {original.diag.message_primary}.")
    # By an SQLSTATE one knows what a database that does answer refuses: a lock that is not free, for one.
    if type(error).__name__ == "OperationalError" and state is None:
        return no_answer(error, Settings.from_env().database_url or "")
    return None


def no_answer(error: Any, url: str) -> ServiceUnavailable:
    """The error for SQLAlchemy's `OperationalError` on the database at `url`, whose password is not told."""
    place = url.rpartition("@")[2].rpartition("://")[2].partition("?")[0]
    reason = " ".join(str(error.orig).split())
    return ServiceUnavailable(
        f"The database at {place} does not answer ({reason.rstrip('.')}). Start it, or check DATABASE_URL."
    )


@contextmanager
def database() -> Iterator[Session]:
    """A transaction on the instance's database.

    Raises:
        RefusedByDatabase: a named constraint or an append-only table refused a row; see `db/errors.py`.
    """
    # Every command imports this module, and most start without SQLAlchemy.
    from db.session import session

    with session(Settings.from_env().require_database_url()) as opened:
        yield opened
