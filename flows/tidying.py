"""Keep the list of runs for what happened: of the runs that looked and found nothing to do, only the newest is kept.

What one of them did stays; so does one that failed.
"""

from __future__ import annotations

from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

NOTHING_TO_DO = "Nothing to do"
"""Name of the state of a run that found nothing to do."""


async def remove_idle_runs() -> None:
    """Remove the earlier runs of this run's flow that found nothing to do."""
    async with get_client() as client:
        own = await client.read_flow_run(UUID(flow_run.id))
        same = FlowFilter(id=FlowFilterId(any_=[own.flow_id]))
        idle = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[NOTHING_TO_DO])))
        for run in await client.read_flow_runs(flow_filter=same, flow_run_filter=idle):
            try:
                await client.delete_flow_run(run.id)
            except ObjectNotFound:  # Another run at its end was quicker.
                continue
