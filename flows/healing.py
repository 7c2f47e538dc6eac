"""End runs that a crash left "Running". Prefect does not do this by itself: a crash is not a failure there.

The SIGKILL of a flow's process is noticed by its worker. The death of a worker is noticed by the next one to serve its
pool, or, where that one never comes, by an automation that misses the run's heartbeats.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State, StateType, WorkerStatus
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.states import Crashed

AUTOMATION = "crash runs without heartbeat"
# Three heartbeats of 30 s; see PREFECT_FLOWS_HEARTBEAT_FREQUENCY in orchestrator/instance/up.py.
SILENCE = timedelta(seconds=90)
HEARTBEAT = "prefect.flow-run.heartbeat"


async def crash_stale_runs(client: PrefectClient, pool: str, worker_name: str) -> list[str]:
    """Set what is Running or Pending on the pool to Crashed, where no other worker is there that could run it.

    Returns the names of the runs. Called by a worker before it takes work: its predecessor's flows died with it.
    """
    others = [
        worker.name
        for worker in await client.read_workers_for_work_pool(pool)
        if worker.status == WorkerStatus.ONLINE and worker.name != worker_name
    ]
    if others:
        return []
    stale = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(
                type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
            )
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    for run in stale:
        state: State[None] = Crashed(
            message=f"Its worker ended; a new one serves the {pool} pool. Run the cycle again."
        )
        await client.set_flow_run_state(run.id, state, force=True)
    return [run.name for run in stale]


async def ensure_automation(client: PrefectClient) -> None:
    """Create the automation that crashes a run whose heartbeat stopped, or bring it up to date."""
    automation = AutomationCore(
        name=AUTOMATION,
        description="A run whose worker is gone stays Running for ever otherwise, and the cycle waits for it.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            # Any news of the run is a sign of life. Its end above all, which is named after the state, "Promoted" say.
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},  # type: ignore[arg-type]
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No sign of life for {SILENCE.seconds} s: its worker is gone. Run the cycle again.",
            )
        ],
    )
    existing = await client.read_automations_by_name(AUTOMATION)
    if existing:
        await client.update_automation(existing[0].id, automation)
    else:
        await client.create_automation(automation)
