"""`orchestrator promote`: put any snapshot live by hand, past ones and those that a gate refused alike."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "digest", metavar="DIGEST", help="the snapshot: its digest, the beginning of it, or artifact:ID"
    )
    parser.add_argument("--reason", required=True, help="why; it stands on the record")


def run(args: argparse.Namespace) -> int:
    """Put it live."""
    from orchestrator.cycles import steering
    from orchestrator.cycles.telling import publish_live
    from orchestrator.database import database
    from orchestrator.instance.policy_api import policy_api
    from orchestrator.store.acts import machine_user

    print(steering.promote_by_hand(database, policy_api(), machine_user(), args.reason, args.digest), flush=True)
    publish_live()
    return 0
