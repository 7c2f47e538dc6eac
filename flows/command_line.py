"""What the modules of flows share as commands: options of a configuration, and errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from flows.running import InProcess
from orchestrator.cycles.until import Until
from orchestrator.database import as_operators_error
from orchestrator.errors import OrchestratorError


def config_options(prog: str) -> argparse.ArgumentParser:
    """A parser of --config, --set and --fresh."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--fresh", action="store_true")
    return parser


def printing(until: Until | None = None) -> InProcess:
    """A runner in this process that prints what it says."""
    return InProcess(lambda line: print(line, flush=True), until)


def exit_status(work: Callable[[], None]) -> int:
    """Do the work; 0 where it ends, and an error's status and one line where a person can act on it."""
    try:
        work()
    except OrchestratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except Exception as error:
        known = as_operators_error(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        return known.exit_status
    return 0
