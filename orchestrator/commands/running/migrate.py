"""`orchestrator migrate`: bring the database to the newest schema."""

from __future__ import annotations

import argparse

from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where it is not the newest")


def run(args: argparse.Namespace) -> int:
    """Migrate, or tell whether it is needed."""
    from db.migrate import current_revision, newest_revision, upgrade

    url = Settings.from_env().require_database_url()
    before, newest = current_revision(url), newest_revision()
    if args.check:
        print(f"The database is at revision {before or 'none'}; this version of the product expects {newest}.")
        return 0 if before == newest else 1
    upgrade(url)
    if before == newest:
        print(f"The database is at revision {newest}; nothing to do.")
    else:
        print(f"Migrated the database from {before or 'nothing'} to revision {newest}.")
    return 0
