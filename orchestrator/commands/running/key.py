"""`orchestrator key`: API keys, by which programs reach the policy server."""

from __future__ import annotations

import argparse

from sqlalchemy import select

from db import tables as t
from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.serving import keys
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="add a key and print it, once")
    add.add_argument("name", help="which program has it")
    add.add_argument("--per-minute", type=int, metavar="N", help="requests a minute (default: the server's)")
    actions.add_parser("end", help="let a key open nothing any more").add_argument("name")
    actions.add_parser("list", help="keys, good and ended; never the keys themselves")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "add":
            key = keys.create_key(database, args.name, args.per_minute)
            print(f"key: {key}")
            print("The key is not stored and can't be shown again.")
        elif args.action == "end":
            keys.end_key(database, args.name)
            print(f"ended: {args.name}")
        else:
            rows = database.execute(
                select(t.ApiKey.name, t.ApiKey.requests_per_minute, t.ApiKey.created_at, t.ApiKey.ended_at).order_by(
                    t.ApiKey.id
                )
            )
            print_table([dict(row._mapping) for row in rows], "No keys yet. Add one with `orchestrator key add NAME`.")
    return 0
