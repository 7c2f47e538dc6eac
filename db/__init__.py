"""Postgres: typed tables, queries and the errors that named constraints become.

Nothing here knows torch, Prefect or the web. Read `db/tables/` first, then `db/session.py`.
"""
