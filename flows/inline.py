"""Run a cycle in this process, without a Prefect server: `python -m flows.inline --config FILE`.

The same stages in the same order; nothing shows in a UI, and nothing is scheduled.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from flows.command_line import config_options, exit_status, printing
from flows.cycle import turn
from orchestrator.config import load_config
from orchestrator.cycles.until import STAGES, Until
from orchestrator.errors import CycleError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and run; 0 for a cycle that ended, 2 for an error."""
    parser = config_options("orchestrator cycle run --inline")
    parser.add_argument("--stage", choices=STAGES)
    args = parser.parse_args(argv)

    def work() -> None:
        until = Until(args.stage, fresh=args.fresh)
        fresh = args.fresh and args.stage is None
        outcome = asyncio.run(turn(load_config(args.config, args.set), printing(until), fresh=fresh))
        if not outcome.as_it_should:
            raise CycleError(f"{outcome.name}. {outcome.message}")
        print(f"{outcome.name}. {outcome.message}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
