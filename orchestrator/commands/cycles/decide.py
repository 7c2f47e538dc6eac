"""`orchestrator cycle decide`: say whether the snapshot of a cycle that waits for approval goes live."""

from __future__ import annotations

import argparse

from orchestrator.commands.starting import become
from orchestrator.errors import ServiceUnavailable


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the action."""
    parser.add_argument("number", type=int, metavar="N", help="the cycle that waits")
    parser.add_argument("decision", choices=("promote", "refuse"))
    parser.add_argument("--reason", required=True, help="why; it stands on the record and in the report")
    parser.add_argument("--inline", action="store_true", help="carry it out in this process, without a Prefect server")


def run(args: argparse.Namespace) -> int:
    """Write the decision down, then let Prefect, or this process where there is none, carry it out."""
    from orchestrator.cycles.deciding import start_finishing, take_decision
    from orchestrator.cycles.runs import Progress, print_to_end
    from orchestrator.instance.identity import own_prefect
    from orchestrator.store.acts import machine_user

    print(take_decision(args.number, args.decision, machine_user(), args.reason), flush=True)
    progress = Progress()
    try:
        api = None if args.inline else own_prefect()
        flow_run_id = start_finishing(api, args.number) if api is not None else None
    except ServiceUnavailable:
        api = flow_run_id = None
    if api is None or flow_run_id is None:
        become("flows.deciding", ["--cycle", str(args.number)])
    print_to_end(api, flow_run_id, progress.news, wait=True)
    return 0
