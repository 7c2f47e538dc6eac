"""`orchestrator announce`: tell every rater something above their tasks."""

from __future__ import annotations

import argparse

from sqlalchemy import select

from db import tables as t
from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.people import notices
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="show a text (Markdown) to every rater")
    add.add_argument("text")
    end = actions.add_parser("end", help="show it no longer")
    end.add_argument("id", type=int)
    actions.add_parser("list", help="announcements, current and ended")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "add":
            print(f"announcement: {notices.announce(database, args.text).id}")
        elif args.action == "end":
            notices.end_announcement(database, args.id)
            print(f"ended: {args.id}")
        else:
            found = t.Announcement
            rows = database.execute(
                select(found.id, found.created_at, found.ended_at, found.content).order_by(found.id)
            )
            print_table([dict(row._mapping) for row in rows], "No announcements.")
    return 0
