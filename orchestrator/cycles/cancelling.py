"""Give up a cycle and end what works on it: its Prefect runs, its jobs, a run in somebody's terminal.

First the row is closed, after which nothing of the cycle is written (`open_cycle_row`); everything after that only
makes it quick. The command, the form `cancel-cycle` and whoever else gives a cycle up come through here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import select

from db import tables as t
from orchestrator.cycles.presence import who_is_at_work
from orchestrator.cycles.record import cancel_cycle
from orchestrator.cycles.standing import left_by_run
from orchestrator.cycles.telling import publish_live
from orchestrator.database import database
from orchestrator.errors import CycleError, ServiceUnavailable
from orchestrator.instance.prefect_api import ENDED, FlowRunJson, PrefectApi
from orchestrator.store.acts import Actor

POLL_S = 0.3
TIMEOUT_S = 120.0
"""Prefect's worker gives a process 30 s to end before it kills it, and may look for work to end only every 15 s."""

Say = Callable[[str], None]


def give_up(number: int, actor: Actor, note: str | None, api: PrefectApi | None, say: Say) -> None:
    """Cancel the cycle, end what works on it, and wait until all of it has ended, telling each step.

    Called again for a cycle that is cancelled it ends what is still at work on it.

    Raises:
        CycleError: no such cycle, it ended otherwise, or something of it is still at work after two minutes.
    """
    # Before the row is closed, since a job that looks just then ends within milliseconds, and shall be told too.
    at_work = _at_work(number)
    cycle_id = _cancelled(number)
    if cycle_id is None:
        cycle_id = cancel_cycle(number, actor, note)
    say(f"Cycle {number} is cancelled: from now on nothing of it is written.")
    for line in went_live(cycle_id):
        say(line)
    _Ending(cycle_id, api, say, at_work).wait(number)
    publish_live()
    say("Nothing works on it any more. Its comparisons go into the next comparison set.")


def went_live(cycle_id: int) -> list[str]:
    """What had gone live before the cycle was cancelled, which cancelling doesn't take back."""
    with database() as session:
        live = session.scalars(
            select(t.Deployment).where(t.Deployment.cycle_id == cycle_id, t.Deployment.ended_at.is_(None))
        ).first()
    if live is None:
        return []
    return [f"Its policy is live since {live.started_at:%Y-%m-%d %H:%M} UTC, and stays so: roll back to end that."]


def _at_work(number: int) -> set[str]:
    """Who is at work on the cycle; nobody where there is no such cycle."""
    with database() as session:
        cycle_id = session.scalars(select(t.Cycle.id).where(t.Cycle.number == number)).one_or_none()
        return set() if cycle_id is None else set(who_is_at_work(session, cycle_id))


def _cancelled(number: int) -> int | None:
    """The cycle's id, where somebody has cancelled it already."""
    with database() as session:
        return session.scalars(
            select(t.Cycle.id).where(t.Cycle.number == number, t.Cycle.state == "cancelled")
        ).one_or_none()


class _Ending:
    """Ends the runs of a cycle, and knows what was told of them."""

    def __init__(self, cycle_id: int, api: PrefectApi | None, say: Say, at_work: set[str]) -> None:
        self._cycle_id, self._api, self._say = cycle_id, api, say
        self._asked: dict[str, str] = {}
        """Names of the runs that were asked to end and have not ended, by id."""
        self._at_work: set[str] = set()
        self._found_at_work(at_work)

    def wait(self, number: int) -> None:
        """Return when no run of the cycle is left and nobody is at work on it."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._left():
            if time.monotonic() > deadline:
                names = ", ".join([*self._asked.values(), *sorted(self._at_work)])
                raise CycleError(
                    f"Cycle {number} is cancelled and nothing of it is written, but after {TIMEOUT_S:.0f} s still at "
                    f"work: {names}. Look at the machine of the pool's worker, then run this again."
                )
            time.sleep(POLL_S)

    def _left(self) -> bool:
        """Whether anything is left; asks new runs to end, and tells what has ended since."""
        # First, because what is at work may end before Prefect has answered.
        self._look_who_is_at_work()
        try:
            self._end_runs()
        except ServiceUnavailable as error:
            self._say(f"{error} What is at work will notice by itself that the cycle is cancelled.")
            self._api, self._asked = None, {}
        return bool(self._at_work or self._asked)

    def _look_who_is_at_work(self) -> None:
        with database() as session:
            self._found_at_work(set(who_is_at_work(session, self._cycle_id)))

    def _found_at_work(self, working: set[str]) -> None:
        for name in sorted(working - self._at_work):
            self._say(f"at work, and told to end: {name}")
        for name in sorted(self._at_work - working):
            self._say(f"has ended: {name}")
        self._at_work = working

    def _end_runs(self) -> None:
        if self._api is None:
            return
        for run in self._runs(self._api):
            id_, name, ended = run["id"], run["name"], run["state_type"] in ENDED
            if ended and id_ in self._asked:
                del self._asked[id_]
                self._say_why(self._api, id_)
                self._say(f"run {str(run['state_name']).lower()}: {name}")
            elif not ended and id_ not in self._asked:
                self._api.cancel(id_)
                self._asked[id_] = name
                self._say(f"run asked to end: {name}")

    @staticmethod
    def _say_why(api: PrefectApi, id_: str) -> None:
        """Let the state of a run that had no process, so that nobody worded it, say what became of its cycle."""
        state, line = api.state(id_), left_by_run(id_)
        if state.type == "CANCELLED" and not state.message and line is not None:
            api.set_state(id_, state.type, state.name, line)

    def _runs(self, api: PrefectApi) -> list[FlowRunJson]:
        """The Prefect runs that worked on the cycle, and those that they started."""
        ids = _runs_of(self._cycle_id)
        if not ids:
            return []
        started = api.flow_runs({"flow_runs": {"parent_flow_run_id": {"any_": ids}}})
        return [*api.flow_runs({"flow_runs": {"id": {"any_": ids}}}), *started]


def _runs_of(cycle_id: int) -> list[str]:
    taken = select(t.CycleRun.flow_run_id).where(t.CycleRun.cycle_id == cycle_id)
    worked = select(t.Stage.flow_run_id).where(t.Stage.cycle_id == cycle_id, t.Stage.flow_run_id.is_not(None))
    with database() as session:
        return sorted(str(id_) for id_ in session.scalars(taken.union(worked)))
