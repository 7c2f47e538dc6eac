"""How a cycle ends once it is decided: put live, put before people, report, close. And who is told what is live.

The same whether its gates decided within its run, or a person did while it waited (`deciding.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flows.reporting import publish_report
from flows.running import Runner
from orchestrator import stages
from orchestrator.cycles.outcomes import Outcome
from orchestrator.cycles.presence import at_work
from orchestrator.cycles.telling import end_waiting_runs, publish_live
from orchestrator.stages.promotion import Decided


async def end_cycle(run: Runner, cycle_id: int, decided: Decided) -> Outcome:
    """Carry out the decision about a cycle and close it."""
    number = await run.ask(stages.cycle_number, cycle_id)
    refusal = await run.ask(stages.refusal, decided.decision_id)
    if refusal is None:
        await run.stage(stages.promote, cycle_id, decided.decision_id)
    await run.stage(stages.put_before_people, cycle_id, decided.snapshot_id, decided.initial_id)
    await publish_report(run, cycle_id)
    await run.ask(stages.close_cycle, cycle_id, "refused" if refusal else "promoted", refusal)
    ended = Outcome("Refused" if refusal else "Promoted", refusal or f"Cycle {number}: a new policy answers raters.")
    await run.ask(end_waiting_runs, cycle_id, ended)
    return ended


@asynccontextmanager
async def seen_at_work(run: Runner, cycle_id: int, name: str) -> AsyncIterator[None]:
    """Be seen at work on a cycle by this name while in here, by Prefect's artifact `live` too."""
    async with telling_what_is_live(run):
        with at_work(cycle_id, name):
            await run.ask(publish_live)
            yield


@asynccontextmanager
async def telling_what_is_live(run: Runner) -> AsyncIterator[None]:
    """Bring Prefect's artifact `live` up to date after what is done in here, however it ends."""
    try:
        yield
    finally:
        await run.ask(publish_live)
