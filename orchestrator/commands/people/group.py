"""`orchestrator group`: raters that are given work together."""

from __future__ import annotations

import argparse

from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.people import queues
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("add", help="add an empty group").add_argument("name")
    for action, meaning in (("join", "put a rater into a group"), ("leave", "take a rater out of a group")):
        moving = actions.add_parser(action, help=meaning)
        moving.add_argument("name")
        moving.add_argument("handle", help="the rater's name")
    actions.add_parser("list", help="groups and how many raters are in each")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "add":
            print(f"group: {queues.add_group(database, args.name).name}")
        elif args.action == "join":
            queues.join_group(database, args.name, args.handle)
            print(f"{args.handle} is in {args.name}")
        elif args.action == "leave":
            queues.leave_group(database, args.name, args.handle)
            print(f"{args.handle} is no longer in {args.name}")
        else:
            rows = [{"name": one.name, "raters": len(one.handles)} for one in queues.group_members(database)]
            print_table(rows, "No groups yet.")
    return 0
