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
    parser.add_argument("--config", type=Path, metavar="FILE", help="default configuration; its schedule is set")
    parser.add_argument("--name", default="weekly", help="name of the cycle's deployment (default: weekly)")


def run(args: argparse.Namespace) -> int:
    """Become `python -m flows.register`, which knows Prefect."""
    if args.config is not None:
        load_config(args.config)
    os.environ["PREFECT_API_URL"] = api_url(Settings.from_env().home)
    words = ["--name", args.name]
    words += ["--config", str(args.config.absolute())] if args.config is not None else []
    become("flows.register", words)
    return 0
