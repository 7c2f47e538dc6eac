"""`orchestrator live`: what is live since when, why and by whom; which cycle is open, and what waits."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from orchestrator.commands.printing import print_table
from orchestrator.errors import ServiceUnavailable
from orchestrator.instance.prefect_api import PrefectApi, api_url
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--history", action="store_true", help="everything that was live, the newest first")
    parser.add_argument("--gates", action="store_true", help="what the gates found before it went live, in numbers")
    parser.add_argument("--publish", action="store_true", help="bring the artifact `live` of the Prefect UI up to date")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print it, and publish it where asked to."""
    from orchestrator.cycles.telling import loop_now, publish_at
    from orchestrator.database import database
    from orchestrator.instance.identity import ensure_own
    from orchestrator.store.live import to_text

    settings = Settings.from_env()
    settings.require_database_url()
    if args.history:
        return _history(as_json=args.json)
    try:
        api = PrefectApi(api_url(settings.home))
        next_slot = api.next_scheduled()
        if args.publish:
            ensure_own(api)
            publish_at(api, database, settings.feedback_url)
    except ServiceUnavailable:
        if args.publish:
            raise
        # Without a Prefect server nobody knows when the next cycle begins; the rest is in our rows.
        next_slot = None
    with database() as session:
        state = loop_now(session, next_slot)
    print(json.dumps(state.to_json(), indent=2) if args.json else to_text(state))
    if args.gates and not args.json:
        print()
        gates = [asdict(gate) for gate in state.live.gates] if state.live else []
        print_table(gates, "No gate was asked about what is live.")
    return 0


def _history(*, as_json: bool) -> int:
    from orchestrator.database import database
    from orchestrator.store.live import at, deployments

    with database() as session:
        found = deployments(session, 1000)
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=2))
        return 0
    rows = [
        {
            "policy": one.digest[:19],
            "cycle": one.cycle,
            "since": at(one.since),
            "until": at(one.until) if one.until else "live",
            "decided by": one.decided,
            "why": one.why if len(one.why) <= 60 else one.why[:59] + "…",
        }
        for one in found
    ]
    print_table(rows, "Nothing was live yet.")
    return 0
