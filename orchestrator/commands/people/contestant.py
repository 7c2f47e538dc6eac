"""`orchestrator contestant`: who can answer raters beside plain policies."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.conversations import contestants
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    best = actions.add_parser("best-of", help="the best of k replies of a policy, chosen by a preference model")
    best.add_argument("name")
    best.add_argument("--policy", required=True, metavar="DIGEST")
    best.add_argument("--preference-model", required=True, metavar="DIGEST")
    best.add_argument("--k", type=int, default=16, help=f"replies to choose from, 2 to {contestants.MAX_K}")
    endpoint = actions.add_parser("endpoint", help="an outside OpenAI-compatible model")
    endpoint.add_argument("name")
    endpoint.add_argument("--url", required=True, help="base of its API, as https://host/v1")
    endpoint.add_argument("--model", required=True, help="the name by which it is asked for")
    endpoint.add_argument(
        "--key-variable", metavar="NAME", help="environment variable of the feedback app that holds the API key"
    )
    writer = actions.add_parser("writer", help="people of a group, who write replies")
    writer.add_argument("name")
    writer.add_argument("--group", required=True)
    listing = actions.add_parser("list", help="every contestant")
    for action in (best, endpoint, writer, listing):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "list":
            found = contestants.contestants(database)
        elif args.action == "best-of":
            found = [contestants.add_best_of(database, args.name, args.policy, args.preference_model, args.k)]
        elif args.action == "endpoint":
            found = [contestants.add_endpoint(database, args.name, args.url, args.model, args.key_variable)]
        else:
            found = [contestants.add_writer(database, args.name, args.group)]
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return 0
    rows = [
        {
            "name": one.name if one.kind != "policy" else one.name[:19],
            "kind": one.kind,
            "policy": one.digest[:19] if one.digest else None,
            "k": one.k,
            "preference_model": one.preference_model[:19] if one.preference_model else None,
            "url": one.url,
            "model": one.model,
        }
        for one in found
    ]
    print_table(rows, "No contestants yet: raters compare two replies of the live policy.")
    return 0
