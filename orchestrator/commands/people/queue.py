"""`orchestrator queue`: open and close queues of work, which say who may do what."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.people import queues
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="open a queue; once there is one, only queues are offered")
    add.add_argument("task")
    add.add_argument("question")
    add.add_argument("--group", help="only for raters of this group")
    add.add_argument("--status", choices=queues.STATUSES, help="only for raters of this status")
    add.add_argument("--weight", type=int, default=1, help="the heavier, the higher on the rater's page")
    add.add_argument("--goal", type=int, help="comparisons after which it offers nothing more")
    close = actions.add_parser("close", help="offer nothing from a queue any more")
    close.add_argument("id", type=int)
    actions.add_parser("list", help="queues, open and closed")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "add":
            options = {"group": args.group, "status": args.status, "weight": args.weight, "goal": args.goal}
            print(f"queue: {queues.add_queue(database, args.task, args.question, **options).id}")
        elif args.action == "close":
            queues.close_queue(database, args.id)
            print(f"closed: {args.id}")
        else:
            rows = [asdict(queue) for queue in queues.queue_figures(database)]
            print_table(rows, "No queues: everything is offered to everybody.")
    return 0
