"""Connections to Postgres: one way to make an engine, one way to open a transaction.

Times are exchanged in UTC. Read next: `db/errors.py`, which names what the database refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from db.errors import translate

CONNECT_TIMEOUT_S = 10


def make_engine(url: str, *, pool_size: int = 5, max_overflow: int = 10) -> Engine:
    """An engine whose connections are checked before use, so that a restarted server costs no request.

    `postgresql://` means psycopg2. The caller disposes of it.
    """
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            url = "postgresql+psycopg2://" + url.removeprefix(prefix)
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=max_overflow,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": "-c timezone=UTC",
            "application_name": "orchestrator",
        },
    )


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A transaction on an engine that its owner keeps: committed at the end, rolled back on an error.

    What it read can be used afterwards.

    Raises:
        RefusedByDatabase: a named constraint or an append-only table refused a row; see `db/errors.py`.
    """
    with translate(), Session(engine, expire_on_commit=False) as opened, opened.begin():
        yield opened


@contextmanager
def session(url: str) -> Iterator[Session]:
    """The same on the database at `url`, by a connection of its own: for commands. A server keeps one engine instead.

    Raises:
        RefusedByDatabase: as for `transaction`.
    """
    engine = make_engine(url, pool_size=1)
    try:
        with transaction(engine) as opened:
            yield opened
    finally:
        engine.dispose()
