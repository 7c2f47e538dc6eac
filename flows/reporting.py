"""When a cycle's report is written and shown: at its end, and where a check stops it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flows.running import Runner
from orchestrator import stages
from orchestrator.errors import CycleError


async def publish_report(run: Runner, cycle_id: int) -> None:
    """Write the report of what is known of the cycle and show it."""
    number = await run.ask(stages.cycle_number, cycle_id)
    _, markdown = await run.stage(stages.write_report, cycle_id)
    await run.report(f"cycle {number}", markdown)


@asynccontextmanager
async def reported_if_stopped(run: Runner, cycle_id: int) -> AsyncIterator[None]:
    """Publish the report where a stage in here refuses to go on: its reason and what was measured; then stop.

    A job that died is no such stop: the next run goes on with it, and its report comes at the end.
    """
    try:
        yield
    except CycleError:
        # On a pool a run that died is a CycleError as well; the ledger knows which it was.
        if await run.ask(stages.stopped_by, cycle_id) is not None:
            await publish_report(run, cycle_id)
        raise
