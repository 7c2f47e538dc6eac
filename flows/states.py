"""How flows end other than completed: states with a word of their own, and what a cancelled run leaves behind."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, flow, get_client
from prefect.client.schemas.objects import FlowRun, State, StateDetails, StateType
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Failed

from orchestrator.cycles.outcomes import Outcome
from orchestrator.cycles.standing import left_by_run
from orchestrator.cycles.telling import publish_live
from orchestrator.errors import CycleCancelled, OrchestratorError

P = ParamSpec("P")
T = TypeVar("T")
FormFlow = Callable[P, Coroutine[Any, Any, State]]
END_POLL_S = 0.5
END_TIMEOUT_S = 60.0
_tasks: set[asyncio.Task[None]] = set()
"""Kept, so that they are not collected before they are done."""


def as_state(outcome: Outcome) -> State:
    """The state that a run ends in."""
    # A run that waits is started anew by the UI's button Resume; without this it would be called running, and no
    # process would be there.
    details = StateDetails(pause_reschedule=True) if outcome.type == "PAUSED" else StateDetails()
    return State(type=StateType[outcome.type], name=outcome.name, message=outcome.message, state_details=details)


def gpu_flow(name: str) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Flow[P, Coroutine[Any, Any, T]]]:
    """A flow of the gpu pool, which ends as cancelled, not as failed, where its cycle was given up."""

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Flow[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return await function(*args, **kwargs)
            except CycleCancelled as cancelled:
                return Cancelled(message=str(cancelled))

        return flow(name=name, on_cancellation=[say_what_is_left])(run)

    return decorate


def told_in_a_line(*mistakes: type[OrchestratorError]) -> Callable[[FormFlow[P]], FormFlow[P]]:
    """A flow that a person's form starts: a mistake of theirs fails it with its own words, and without a traceback."""

    def decorate(function: FormFlow[P]) -> FormFlow[P]:
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> State:
            try:
                return await function(*args, **kwargs)
            except mistakes as error:
                return Failed(message=str(error))

        # Prefect would look for the names of its types here, in place of where the function stands.
        run.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
        return run

    return decorate


async def say_what_is_left(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Tell in the cancelled run's log and state that its cycle is open, and how to give it up.

    The worker calls this before it sets the state, and words the state itself; so the words follow after that.
    """
    line = await asyncio.to_thread(left_by_run, str(flow_run.id))
    await asyncio.to_thread(publish_live)
    if line is None:
        return
    flow_run_logger(flow_run, flow).warning(line)
    task = asyncio.create_task(_say_once_cancelled(flow_run, line))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _say_once_cancelled(flow_run: FlowRun, line: str) -> None:
    async with get_client() as client, asyncio.timeout(END_TIMEOUT_S):
        while True:
            state = (await client.read_flow_run(flow_run.id)).state
            if state is not None and state.is_final():
                break
            await asyncio.sleep(END_POLL_S)
        if state.type is StateType.CANCELLED:
            await client.set_flow_run_state(flow_run.id, Cancelled(message=line), force=True)
