"""One run a slot of the schedule: what piled up while nobody ran it is one turn, and no slot is taken twice."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import flow_run

BY_SCHEDULE = "auto-scheduled"
"""Tag by which Prefect's scheduler marks its runs; those that people start are never passed over."""
PASSED_OVER = "Skipped: late"


async def passed_over() -> str | None:
    """Why another run has this one's turn; None where it has it itself."""
    async with get_client() as client:
        run = await client.read_flow_run(UUID(flow_run.id))
        if not run.auto_scheduled or run.deployment_id is None:
            return None
        due = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
            tags=FlowRunFilterTags(all_=[BY_SCHEDULE]),
            expected_start_time=FlowRunFilterExpectedStartTime(
                after_=run.expected_start_time, before_=datetime.now(UTC)
            ),
        )
        rival = first_in_turn([run, *await client.read_flow_runs(flow_run_filter=due)])
    if rival.id == run.id:
        return None
    return (
        f"Its slot was {_time(run)}; the run of the slot {_time(rival)} has the turn. What falls due while no server "
        "or worker is there is one cycle, not one for each slot."
    )


def first_in_turn(due: list[FlowRun]) -> FlowRun:
    """Of the runs that are due, the one of the newest slot; of one slot's, which two schedules may have, the first."""
    # A run that somebody cancelled has given its turn up.
    left = [run for run in due if run.state_type is not StateType.CANCELLED] or due
    newest = max(_slot(run) for run in left)
    return min((run for run in left if _slot(run) == newest), key=lambda run: run.id)


def _slot(run: FlowRun) -> datetime:
    assert run.expected_start_time is not None
    return run.expected_start_time


def _time(run: FlowRun) -> str:
    return f"{_slot(run).astimezone(UTC):%a %Y-%m-%d %H:%M} UTC"
