"""`orchestrator worker`: run a Prefect worker for the cpu or gpu pool.

Prefect is known to `flows/` alone, so the command becomes `python -m flows.worker`.
"""

from __future__ import annotations

import argparse
import os

from orchestrator.commands.starting import become
from orchestrator.instance.prefect_api import api_url
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--pool", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--name", help="name of the worker; keep it over restarts (default: the pool and this host)")
    parser.add_argument("--limit", type=int, help="runs at a time (default: cpu 8, gpu 1)")


def run(args: argparse.Namespace) -> int:
    """Become the worker, so that signals reach it."""
    # Without one Prefect would begin a temporary server of its own and wait for it.
    os.environ["PREFECT_API_URL"] = api_url(Settings.from_env().home)
    words = ["--pool", args.pool]
    words += ["--name", args.name] if args.name else []
    words += ["--limit", str(args.limit)] if args.limit is not None else []
    become("flows.worker", words)
    return 0
