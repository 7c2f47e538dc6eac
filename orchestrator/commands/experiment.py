"""`orchestrator experiment`: questions to the data that are no cycle, and put nothing before people."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.commands.worker import become
from orchestrator.config import load_config
from orchestrator.prefect_api import PrefectApi, api_url
from orchestrator.settings import Settings

ROBUSTNESS = "robustness/gpu"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    start = actions.add_parser(
        "robustness", help="two preference models on halves of the comparisons, PPO against one, both score it"
    )
    start.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML file of a cycle")
    start.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: section.key=value"
    )
    start.add_argument("--comparisons", metavar="ID", help="comparison set, by id or digest (default: the newest)")
    start.add_argument("--fresh", action="store_true", help="build every artifact anew")
    start.add_argument("--inline", action="store_true", help="in this process, without a Prefect server")
    start.add_argument("--no-wait", action="store_true", help="only start it, and print the flow run's id")


def run(args: argparse.Namespace) -> int:
    """Start the experiment, here or on the gpu pool, and wait for it."""
    # Read here too, so that a mistake is told at once and not by a failed flow run.
    load_config(args.config, args.set)
    settings = Settings.from_env()
    settings.require_database_url()
    if args.inline:
        words = ["--config", str(args.config.absolute())]
        for override in args.set:
            words += ["--set", override]
        words += ["--comparisons", args.comparisons] if args.comparisons else []
        become("flows.robustness", [*words, *(["--fresh"] if args.fresh else [])])
    from orchestrator.cycle_runs import print_to_end

    api = PrefectApi(api_url(settings.home))
    flow_run_id = api.start_run(
        ROBUSTNESS,
        {
            "config": str(args.config.absolute()),
            "overrides": args.set,
            "comparisons": args.comparisons,
            "fresh": args.fresh,
        },
    )
    print_to_end(api, flow_run_id, settings.home, wait=not args.no_wait)
    return 0
