"""Bring a database to a schema revision. The revisions are in `migrations/versions/`.

Safe to call from several processes at once, and on a database that is there already: the second waits, then does
nothing.
"""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from db.session import make_engine

# Alembic keeps the migration that runs in module variables; other processes are kept out by a lock in the database.
_one_at_a_time = threading.Lock()


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate up to `revision`; all of it or, on an error, nothing."""
    _run(url, command.upgrade, revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate down to `revision`; `base` drops every table with what it holds."""
    _run(url, command.downgrade, revision)


def current_revision(url: str) -> str | None:
    """The revision the database is at, or None where it was never migrated."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def newest_revision() -> str:
    """The revision this code expects."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    if head is None:
        raise RuntimeError("migrations/versions/ holds no revision; the installation is incomplete.")
    return head


def config() -> Config:
    """Alembic's configuration; the scripts are found beside the package, wherever it is installed."""
    spec = find_spec("migrations")
    if spec is None or spec.origin is None:
        raise RuntimeError("The package `migrations` is not installed beside `db`; install the product again.")
    found = Config()
    # Percent signs in a path would be read as interpolation.
    found.set_main_option("script_location", str(Path(spec.origin).parent).replace("%", "%%"))
    return found


def _run(url: str, action: object, revision: str) -> None:
    settings = config()
    engine = make_engine(url)
    try:
        with _one_at_a_time, engine.connect() as connection:
            settings.attributes["connection"] = connection
            action(settings, revision)  # type: ignore[operator]
            connection.commit()
    finally:
        engine.dispose()
