"""When a cycle's report is written and shown: at its end, and where something stops it on the way."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flows.running import Runner
from orchestrator import stages
from orchestrator.cycles.record import check_open
from orchestrator.errors import CycleCancelled, CyclePaused

logger = logging.getLogger(__name__)


async def publish_report(run: Runner, cycle_id: int, failure: str | None = None) -> None:
    """Write the report of what is known of the cycle and show it. `failure` is the error that ended its run."""
    number = await run.ask(stages.cycle_number, cycle_id)
    report = await run.stage(stages.write_report, cycle_id, failure)
    await run.report(f"cycle {number}", report.first_screen, report.text)


async def report_anew(run: Runner, cycle_id: int) -> bool:
    """Write the report of an earlier cycle once more, with what people said since, and show it; False where it is not.

    Where that can't be done any more, because texts of it were erased, say, the report stays as it was: the cycle that
    runs now does not need it.
    """
    try:
        await publish_report(run, cycle_id)
    except Exception as error:  # Results of any age, files of any store: none of it may end this cycle.
        logger.warning("The report of an earlier cycle stays as it was: %s", error)
        return False
    return True


async def report_what_people_said(run: Runner, *, at_once: bool) -> list[int]:
    """Measure what people said of earlier snapshots, and bring the reports up to date. Returns numbers of cycles.

    Without `at_once` only where it is time to (`orchestrator/stages/elo.py`).
    """
    numbers = []
    for cycle_id in await run.ask(stages.what_people_said, at_once=at_once):
        if await report_anew(run, cycle_id):
            numbers.append(await run.ask(stages.cycle_number, cycle_id))
    return numbers


@asynccontextmanager
async def reported_if_stopped(run: Runner, cycle_id: int) -> AsyncIterator[None]:
    """Publish the report where a run ends in here before its cycle: on an error, or after the one stage it was for.

    A run that is cancelled says nothing, and one that is killed can't.

    Raises:
        CycleCancelled: the cycle was given up, and whatever error ended the run came of that.
        CyclePaused: as raised in here.
    """
    try:
        yield
    except CycleCancelled:
        raise
    except CyclePaused:
        await publish_report(run, cycle_id)
        raise
    except Exception as error:
        try:
            await run.ask(check_open, cycle_id)
            await publish_report(run, cycle_id, f"{type(error).__name__}: {error}")
        except CycleCancelled as cancelled:
            raise cancelled from error
        except Exception as unwritten:  # What ended the run matters more, and often is the reason for this one too.
            error.add_note(f"The cycle's report could not be written: {type(unwritten).__name__}: {unwritten}")
        raise
