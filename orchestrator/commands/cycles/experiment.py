"""`orchestrator experiment`: questions to the data that are no cycle, and put nothing before people."""

from __future__ import annotations

import argparse

from orchestrator.commands.starting import become_inline, checked_start, configure_start

ROBUSTNESS = "robustness/robustness"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    start = actions.add_parser(
        "robustness", help="two preference models on halves of the comparisons, PPO against one, both score it"
    )
    configure_start(start, "TOML file of a cycle")
    start.add_argument("--comparisons", metavar="ID", help="comparison set, by id or digest (default: the newest)")
    show = actions.add_parser("show", help="the report of an experiment")
    show.add_argument("report", nargs="?", metavar="ID", help="its artifact, by id or digest (default: the newest)")
    show.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    return {"robustness": _robustness, "show": _show}[args.action](args)


def _robustness(args: argparse.Namespace) -> int:
    """Start the experiment, here or on the gpu pool, and wait for it."""
    checked_start(args)
    if args.inline:
        become_inline("flows.robustness", args, ["--comparisons", args.comparisons] if args.comparisons else [])
    from orchestrator.cycles.runs import TaskProgress, flow_parameters, print_to_end
    from orchestrator.instance.identity import own_prefect

    api = own_prefect()
    parameters = {**flow_parameters(args.config, args.set, fresh=args.fresh), "comparisons": args.comparisons}
    flow_run_id = api.start_run(ROBUSTNESS, parameters)
    print_to_end(api, flow_run_id, TaskProgress(api, flow_run_id).news, wait=not args.no_wait)
    if not args.no_wait:
        print(
            "`orchestrator experiment show` prints the report; its picture is an artifact of the run in the Prefect UI."
        )
    return 0


def _show(args: argparse.Namespace) -> int:
    from orchestrator.stages.robustness import report_folder

    folder = report_folder(args.report)
    print((folder / ("report.json" if args.json else "report.md")).read_text(encoding="utf-8"))
    if not args.json:
        print(f"The picture: {folder / 'gap.png'}")
    return 0
