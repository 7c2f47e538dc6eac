"""`orchestrator worker`: run a Prefect worker for the cpu or gpu pool.

Prefect is known to `flows/` alone, so the command becomes `python -m flows.worker`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from orchestrator.instance.prefect_api import api_url, prefect_environment
from orchestrator.instance.training_jobs import PROJECT_ROOT
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


def become(module: str, words: list[str]) -> NoReturn:
    """Replace this process by `python -m module`, which is found from any directory.

    It has the same settings of Prefect as what `orchestrator up` starts, those apart that the environment sets.
    """
    for name, value in prefect_environment(Settings.from_env().home).items():
        os.environ.setdefault(name, value)
    paths = filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *words])
