"""`orchestrator operator`: people at the desk, each with a name and a token of their own, and what they did."""

from __future__ import annotations

import argparse

from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.people import operators
from orchestrator.settings import Settings
from orchestrator.store.acts import machine_user, newest_acts, record_act


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="let a person sign in at the desk; prints their token, once")
    add.add_argument("name", help="as it stands on what they do; no second person gets it")
    end = actions.add_parser("end", help="let them in no longer, at once")
    end.add_argument("name")
    actions.add_parser("list", help="who is and was at the desk")
    acts = actions.add_parser("acts", help="what people did, the newest first; decisions stand in `orchestrator live`")
    acts.add_argument("--limit", type=int, default=50)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "add":
            operator, token = operators.add_operator(database, args.name)
            record_act(database, machine_user(), "add_operator", f"operator {operator.name}")
            print(f"operator: {operator.name}\ntoken: {token}\nIt is shown this once; they sign in at /desk with it.")
        elif args.action == "end":
            operators.end_operator(database, args.name)
            record_act(database, machine_user(), "end_operator", f"operator {args.name}")
            print(f"ended: {args.name}")
        elif args.action == "list":
            rows = [
                {"name": one.name, "since": f"{one.created_at:%Y-%m-%d}", "state": "ended" if one.ended_at else "open"}
                for one in operators.operators(database)
            ]
            print_table(rows, "No operators; `orchestrator operator add NAME` makes one.")
        else:
            print_table(
                [
                    {
                        "at": f"{one.created_at:%Y-%m-%d %H:%M}",
                        "who": one.actor,
                        "known as": one.identity,
                        "via": one.via,
                        "did": one.act,
                        "to": one.subject,
                    }
                    for one in newest_acts(database, args.limit)
                ],
                "Nobody did anything yet.",
            )
    return 0
