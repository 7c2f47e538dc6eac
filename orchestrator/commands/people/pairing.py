"""`orchestrator pairing`: the pairing table, which contestants meet in a task."""

from __future__ import annotations

import argparse
import json

from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.conversations import contestants, pairings
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    opening = actions.add_parser("open", help="let two contestants meet in a task from now on")
    opening.add_argument("task")
    opening.add_argument("a", help="name of a contestant, or digest of a policy")
    opening.add_argument("b")
    opening.add_argument("--weight", type=float, default=1.0, help="how often it is drawn, beside the task's others")
    ending = actions.add_parser("end", help="let them meet no more")
    ending.add_argument("id", type=int)
    listing = actions.add_parser("list", help="pairings and what each brought so far")
    listing.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "open":
            a, b = (contestants.get_contestant(database, name) for name in (args.a, args.b))
            pairing = pairings.open_pairing(database, args.task, a.id, b.id, weight=args.weight)
            print(f"pairing: {pairing.id}")
            return 0
        if args.action == "end":
            pairings.end_pairing(database, args.id)
            print(f"ended: {args.id}")
            return 0
        rows = [
            {
                "id": row.pairing.id,
                "task": row.pairing.task,
                "a": row.pairing.a.title,
                "b": row.pairing.b.title,
                "weight": row.pairing.weight,
                "pairs": row.pairs,
                "complete": row.complete,
                "compared": row.compared,
                "won_a": row.won_a,
                "won_b": row.won_b,
                "undecided": row.undecided,
                "ended_at": None if row.ended_at is None else row.ended_at.isoformat(timespec="seconds"),
            }
            for row in pairings.pairing_figures(database)
        ]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows, "No pairings: raters compare two replies of the live policy.")
    return 0
