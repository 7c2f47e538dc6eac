"""`orchestrator metrics export`: what the jobs of this machine measured while they ran, for other tools."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = actions.add_parser("export", help="write the metrics of every job of this machine as event files")
    export.add_argument("--tensorboard", type=Path, required=True, metavar="DIR", help="folder for TensorBoard's files")


def run(args: argparse.Namespace) -> int:
    """Export, and say what became of it."""
    from orchestrator.errors import CycleError
    from orchestrator.reports.tensorboard import export_runs
    from orchestrator.settings import Settings

    work = Settings.from_env().home / "work"
    written = export_runs(work, args.tensorboard)
    if not written:
        raise CycleError(f"No job has written metrics below {work}. Jobs run on the machine of the gpu pool's worker.")
    for name, lines in written:
        print(f"{name}: {lines} steps")
    print(f"tensorboard --logdir {args.tensorboard}")
    return 0
