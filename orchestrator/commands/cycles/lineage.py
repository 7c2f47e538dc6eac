"""`orchestrator lineage`: what something came from and what it went into."""

from __future__ import annotations

import argparse
import json

from db.session import session
from orchestrator.settings import Settings
from orchestrator.store.lineage import lineage


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "id",
        help="an artifact's id or the beginning of its digest, or candidate:ID, message:ID, comparison:ID, rater:ID "
        "(or rater:HANDLE)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every comparison by id")


def run(args: argparse.Namespace) -> int:
    """Print both directions."""
    with session(Settings.from_env().require_database_url()) as database:
        found = lineage(database, args.id)
    print(json.dumps(found.to_json(), indent=2) if args.json else found.render())
    return 0
