"""`orchestrator roll-back`: go back to the policy that was live before, or to one that is named."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--to", metavar="DIGEST", help="the policy to go back to (default: the one before)")
    target.add_argument("--cycle", type=int, metavar="N", help="go back to what this cycle made")
    parser.add_argument("--reason", required=True, help="why; it stands on the record")


def run(args: argparse.Namespace) -> int:
    """Go back, and say to what."""
    from orchestrator.cycles import steering
    from orchestrator.cycles.telling import publish_live
    from orchestrator.database import database
    from orchestrator.instance.policy_api import policy_api
    from orchestrator.store.acts import machine_user

    print(
        steering.roll_back(database, policy_api(), machine_user(), args.reason, digest=args.to, cycle=args.cycle),
        flush=True,
    )
    publish_live()
    return 0
