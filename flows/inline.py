"""Run a cycle in this process, without a Prefect server: `python -m flows.inline --config FILE`.

The same stages in the same order; nothing shows in a UI, and nothing is scheduled.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.cycle import turn
from flows.running import InProcess
from orchestrator.config import CycleConfig, load_config
from orchestrator.errors import OrchestratorError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and run; 0 for a cycle that ended, 2 for an error."""
    parser = argparse.ArgumentParser(prog="orchestrator cycle run --inline")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args(argv)
    try:
        config: CycleConfig = load_config(args.config, args.set)
        outcome = asyncio.run(turn(config, InProcess(lambda line: print(line, flush=True)), fresh=args.fresh))
    except OrchestratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"{outcome.name}. {outcome.message}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
