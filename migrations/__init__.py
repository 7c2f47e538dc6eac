"""Alembic migrations: every schema the product ever had, from the first table on.

Run them with `orchestrator migrate` or `db.migrate.upgrade`; write a new one as `docs/explanation/data.md` says.
"""
