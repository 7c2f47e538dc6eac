"""`orchestrator register`: create the Prefect work pools, deployments and automation, or bring them up to date."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from orchestrator.commands.starting import become
from orchestrator.config import load_config
from orchestrator.instance.prefect_api import api_url
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default configuration; its schedule is set (default: both stay)"
    )
    parser.add_argument("--name", default="weekly", help="name of the cycle's deployment (default: weekly)")
    parser.add_argument("--no-schedule", action="store_true", help="let no cycle begin by itself any more")
    parser.add_argument("--remove", metavar="NAME", help="remove the cycle's deployment of this name, and no more")
    parser.add_argument(
        "--claim", action="store_true", help="take over a Prefect server that another database has claimed"
    )


def run(args: argparse.Namespace) -> int:
    """Become `python -m flows.register`, which knows Prefect."""
    if args.config is not None:
        load_config(args.config)
    settings = Settings.from_env()
    os.environ["PREFECT_API_URL"] = api_url(settings.home)
    # Whose the server is, the database says.
    os.environ["DATABASE_URL"] = settings.require_database_url()
    become("flows.register", words_of(args))
    return 0


def words_of(args: argparse.Namespace) -> list[str]:
    """The options again as words; the file by its absolute path."""
    words = ["--name", args.name]
    words += ["--config", str(args.config.absolute())] if args.config is not None else []
    words += ["--remove", args.remove] if args.remove is not None else []
    words += ["--no-schedule"] if args.no_schedule else []
    return words + (["--claim"] if args.claim else [])
