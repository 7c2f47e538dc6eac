"""`orchestrator metrics export`: what jobs measured while they ran, for other tools."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = actions.add_parser("export", help="hand the metrics of every job on to TensorBoard, MLflow or W&B")
    choice = export.add_mutually_exclusive_group(required=True)
    choice.add_argument("--tensorboard", metavar="DIR", help="folder for TensorBoard's event files")
    choice.add_argument("--mlflow", metavar="URI", help="MLflow's server or database: http://... or sqlite:///FILE")
    choice.add_argument("--wandb", metavar="DIR", help="folder for runs of Weights & Biases, sent by `wandb sync`")


def run(args: argparse.Namespace) -> int:
    """Export, and say what became of it."""
    from orchestrator.errors import CycleError
    from orchestrator.reports.trackers import TRACKERS
    from orchestrator.reports.trackers.measured import measured_runs
    from orchestrator.settings import Settings

    settings = Settings.from_env()
    runs = measured_runs(settings)
    if not runs:
        place = "in this database, and none" if settings.database_url is not None else "(DATABASE_URL is not set), and"
        raise CycleError(f"No job has told metrics {place} below {settings.home / 'work'} of this machine.")
    name = next(name for name in TRACKERS if getattr(args, name) is not None)
    how = TRACKERS[name](runs, getattr(args, name))
    for each in runs:
        print(f"{each.name}: {len(each.lines)} steps")
    print(how)
    return 0
