"""Prefect's standing artifact `live`: what is live and where the loop is, as everybody else words it too.

It shows what our tables say and is never read back; without a Prefect server nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cycles.outcomes import Outcome
from orchestrator.cycles.presence import who_is_at_work
from orchestrator.cycles.runs import jobs_of
from orchestrator.cycles.time_left import left_said
from orchestrator.database import database
from orchestrator.errors import OrchestratorError
from orchestrator.instance.identity import own_prefect
from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.settings import Settings
from orchestrator.store.live import PUT_LIVE, Live, LoopState, in_a_line, loop_state, to_markdown

KEY = "live"
CHANGED_BY_HAND = "orchestrator.live-changed-by-hand"
"""Name of the event."""
Database = Callable[[], AbstractContextManager[Session]]
"""Opens a transaction."""


def end_waiting_runs(cycle_id: int, outcome: Outcome) -> None:
    """Let the runs that ended as waiting say how their cycle ended, where a Prefect server shows them."""
    with database() as session:
        run_ids = session.scalars(select(t.CycleRun.flow_run_id).where(t.CycleRun.cycle_id == cycle_id)).all()
    try:
        api = own_prefect()
        for run_id in run_ids:
            if api.state(run_id).type == "PAUSED":
                api.set_state(run_id, outcome.type, outcome.name, outcome.message)
    except OrchestratorError:
        # Whether a run is still called waiting decides nothing.
        return


def loop_now(session: Session, next_slot: datetime | None = None) -> LoopState:
    """Where the loop is now, what works on it, and how far that is."""
    state = _loop_at_work(session, next_slot)
    if state.open_cycle is None:
        return state
    jobs = jobs_of(session, state.open_cycle.id)
    # A stage that was killed is called running in its row.
    far = tuple(f"{name}: {jobs[name]}" for name in state.open_cycle.at_work or () if name in jobs)
    return replace(state, open_cycle=replace(state.open_cycle, how_far=far))


def _loop_at_work(session: Session, next_slot: datetime | None) -> LoopState:
    """The same for what is read later than it is written, when jobs are further."""
    state = loop_state(session, next_slot)
    if state.open_cycle is None:
        return state
    cycle = state.open_cycle
    working = tuple(who_is_at_work(session, cycle.id))
    left = left_said(session, cycle.id) if working and cycle.number > 0 else None
    return replace(state, open_cycle=replace(cycle, at_work=working, left=left))


def left_of(session: Session, cycle_id: int) -> str | None:
    """How long a cycle still takes, in words; None where it is over, waits or nothing works on it."""
    cycle = loop_now(session).open_cycle
    return cycle.left if cycle is not None and cycle.id == cycle_id else None


def publish_live() -> bool:
    """Bring the artifact up to date; False where no Prefect server is there to show it.

    What ends a cycle must not fail because nobody can be told.
    """
    try:
        return publish_at(own_prefect(), database, Settings.from_env().feedback_url)
    except OrchestratorError:
        return False


def publish_at(api: PrefectApi, database: Database, feedback_url: str | None = None) -> bool:
    """The same on a given server. A version that says the same as the last is not added."""
    next_slot = api.next_scheduled()
    with database() as session:
        state = _loop_at_work(session, next_slot)
    links = {"The desk": f"{feedback_url}/desk/live"} if feedback_url else {}
    mark = f"[//]: # (deployment {state.live.deployment_id if state.live else 0})"
    markdown, earlier = f"{to_markdown(state, links)}\n\n{mark}\n", api.artifact(KEY)
    if earlier != markdown:
        api.add_artifact(KEY, markdown, in_a_line(state))
    if state.live is not None and state.live.decision in PUT_LIVE and earlier is not None and mark not in earlier:
        _tell_of_change(api, state.live)
    return True


def _tell_of_change(api: PrefectApi, live: Live) -> None:
    """Let those who are told of runs (`flows/notifying.py`) know what a person put live, by whichever way."""
    done = PUT_LIVE[live.decision]
    message = f"{live.name}, by {live.decided}. {live.why}"
    api.tell(CHANGED_BY_HAND, "orchestrator.policy", f"The live policy was {done}", message)
