"""What `orchestrator cycle run` and `orchestrator experiment ...` share: a configuration, and where to run with it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from orchestrator.config import load_config
from orchestrator.instance.prefect_api import prefect_environment
from orchestrator.settings import PROJECT_ROOT, Settings


def configure_start(parser: argparse.ArgumentParser, config: str) -> None:
    """Options of a command that starts a flow; `config` says what its file is."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help=config)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: section.key=value"
    )
    parser.add_argument("--fresh", action="store_true", help="build every artifact anew")
    parser.add_argument("--inline", action="store_true", help="in this process, without a Prefect server")
    parser.add_argument("--no-wait", action="store_true", help="only start it, and print the flow run's id")


def checked_start(args: argparse.Namespace) -> Settings:
    """Read the configuration here too, so that a mistake is told at once and not by a failed flow run.

    Raises:
        ConfigError: a mistake in it, or no database.
    """
    load_config(args.config, args.set)
    settings = Settings.from_env()
    settings.require_database_url()
    return settings


def become_inline(module: str, args: argparse.Namespace, more: list[str] | None = None) -> NoReturn:
    """Replace this process by the flow's module with the same options."""
    words = ["--config", str(args.config.absolute())]
    for override in args.set:
        words += ["--set", override]
    become(module, [*words, *(more or []), *(["--fresh"] if args.fresh else [])])


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
