"""`orchestrator problem`: what raters reported, and what was seen to."""

from __future__ import annotations

import argparse
import json

from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.people import notices
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="reports that wait, oldest first")
    listing.add_argument("--handled", action="store_true", help="those that were seen to, newest first")
    listing.add_argument("--json", action="store_true", help="print JSON")
    handle = actions.add_parser("handled", help="mark a report as seen to")
    handle.add_argument("id", type=int)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "handled":
            notices.handle_report(database, args.id)
            print(f"handled: {args.id}")
            return 0
        rows = [vars(report) for report in notices.problem_reports(database, handled=args.handled)]
    if args.json:
        print(json.dumps(rows, indent=2, default=str))
    else:
        print_table([row | {"content": " ".join(row["content"].split())[:100]} for row in rows], "No problem reports.")
    return 0
