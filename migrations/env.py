"""How Alembic runs our migrations: one at a time, in one transaction, and never waiting long for a lock.

`db/migrate.py` hands over an open connection; Alembic's own command line takes the address from `DATABASE_URL`.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, text

from db.session import make_engine
from db.tables import Base

# A migration that waits for a lock blocks every query that queues behind it: better to fail and be run again.
LOCK_TIMEOUT = "10s"

# Any constant will do, as long as every migrating process takes the same one ("migrate" as ASCII, shortened).
ADVISORY_LOCK = 0x6D696772617465


def run(connection: Connection) -> None:
    """Run what was asked on this connection, while no other process migrates the same database."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text(f"set local lock_timeout = '{LOCK_TIMEOUT}'"))
        context.run_migrations()


if context.is_offline_mode():
    context.configure(
        url=os.environ.get("DATABASE_URL", "postgresql+psycopg2://"), target_metadata=Base.metadata, literal_binds=True
    )
    with context.begin_transaction():
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    engine = make_engine(os.environ["DATABASE_URL"])
    with engine.connect() as own:
        run(own)
        own.commit()
    engine.dispose()
