"""Two ways to run the stages that `cycle.py` orders: as Prefect tasks and deployments, or in this process.

Nothing is read back from Prefect but whether a run completed; what it made is found in the ledger.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, get_type_hints
from uuid import UUID

from prefect import Flow, get_client, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import arun_deployment
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Running

from flows.made import Made
from flows.progress import Showing
from flows.threads import in_thread
from orchestrator.cycles.record import check_open
from orchestrator.cycles.turn import artifacts_of_run
from orchestrator.cycles.until import Until
from orchestrator.errors import CycleCancelled, JobFailed, JobRefused

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Made)
GpuFlow = Flow[P, Coroutine[Any, Any, M]]

INLINE_PICTURE = re.compile(r"!\[[^\]]*\]\(data:[^)]*\)\n*")
POLL_S = 0.3
MAX_POLL_S = 5.0


class Runner(Protocol):
    """Where the stages of a cycle run."""

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something quick that is no stage."""

    async def stage(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a stage here."""

    async def on_gpu(self, gpu_flow: GpuFlow[P, M], *args: P.args, **kwargs: P.kwargs) -> M:
        """Run a flow of `training.py` where the GPU is; returns what it made."""

    async def scheduled(self) -> bool:
        """Whether the schedule started this run, and not a person."""

    async def queued(self, message: str | None) -> None:
        """Say that this run waits for the end of another; None once it has waited."""

    async def tell(self, line: str | None) -> None:
        """Say something by the way; nothing where there is nothing to say."""

    async def announce(self, title: str, cycle_id: int | None = None) -> None:
        """Say which cycle this is, once that is known."""

    async def report(self, of: str, markdown: str, text: str | None = None) -> None:
        """Show the report of a cycle ("cycle 3") or an experiment; `text` is what a terminal shows in its place."""


class InProcess:
    """Everything in this process, without a Prefect server."""

    def __init__(self, say: Callable[[str], None], until: Until | None = None) -> None:
        self._say = say
        self._until = until or Until()

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something quick that is no stage."""
        return await in_thread(function, *args, **kwargs)

    async def stage(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a stage in a thread."""
        name: str = function.__name__  # type: ignore[attr-defined]
        self._until.begin(name, kwargs)
        self._say(name)
        result = await in_thread(function, *args, **kwargs)
        self._until.end(name)
        return result

    async def on_gpu(self, gpu_flow: GpuFlow[P, M], *args: P.args, **kwargs: P.kwargs) -> M:
        """Run the flow's function.

        Raises:
            CycleCancelled: the cycle was given up meanwhile.
        """
        self._until.begin(gpu_flow.name, kwargs)
        self._say(gpu_flow.fn.__name__)
        made: M | State = await gpu_flow.fn(*args, **kwargs)
        if isinstance(made, State):
            raise CycleCancelled(made.message or "")
        self._until.end(gpu_flow.name)
        return made

    async def scheduled(self) -> bool:
        """Nobody schedules this process for us."""
        return False

    async def queued(self, message: str | None) -> None:
        """Print it."""
        await self.tell(message)

    async def tell(self, line: str | None) -> None:
        """Print it."""
        if line is not None:
            self._say(line)

    async def announce(self, title: str, cycle_id: int | None = None) -> None:
        """Print the title."""
        self._say(title)

    async def report(self, of: str, markdown: str, text: str | None = None) -> None:
        """Print the report without its pictures, which lie in its artifact."""
        self._say(INLINE_PICTURE.sub("", text or markdown))


class OnPools:
    """Inside a flow run: stages are tasks of it, what needs a GPU a run of its own on the gpu pool."""

    def __init__(self, until: Until | None = None) -> None:
        self._until = until or Until()
        self._title = "cycle"
        self._showing = Showing()

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something quick that is no stage."""
        return await in_thread(function, *args, **kwargs)

    async def stage(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a stage as a task, so that the UI shows where the cycle is."""
        name: str = function.__name__  # type: ignore[attr-defined]
        self._until.begin(name, kwargs)
        # Prefect's types know of no state from a task that is awaited.
        named: Any = _stage.with_options(name=name, task_run_name=name)
        async with self._showing.following(str(flow_run.id)):
            state: State = await named(functools.partial(function, *args, **kwargs), return_state=True)
        if state.is_cancelled():
            raise CycleCancelled(state.message or "")
        result: T = await state.aresult()
        self._until.end(name)
        return result

    async def on_gpu(self, gpu_flow: GpuFlow[P, M], *args: P.args, **kwargs: P.kwargs) -> M:
        """Start the Prefect deployment, wait for it, and find what it made in the ledger.

        Raises:
            JobFailed: the run failed, crashed or was cancelled.
            CycleCancelled: the cycle was given up meanwhile.
        """
        self._until.begin(gpu_flow.name, kwargs)
        parameters = inspect.signature(gpu_flow.fn).bind(*args, **kwargs).arguments
        started = await arun_deployment(
            # As `register.py` names it: after what it does, which the UI's list of deployments shows.
            f"{gpu_flow.name}/{gpu_flow.name}",
            parameters=dict(parameters),
            flow_run_name=f"{self._title}, {gpu_flow.name.replace('-', ' ')}",
            timeout=0,
        )
        try:
            async with self._showing.following(str(started.id)):
                state = await _final_state(started.id)
        except BaseException:
            # This run is being ended; what it started must not train on for nobody.
            await cancel(started.id)
            raise
        if state.type is StateType.CANCELLED:
            # Where the cycle was given up that is the reason; else somebody cancelled this run alone.
            await in_thread(check_open, parameters["cycle_id"])
        if state.type is not StateType.COMPLETED:
            raise JobFailed(
                f"{gpu_flow.name} ended as {state.name}: {state.message or 'no message'}. {_how_to_go_on(state)}"
            )
        made: type[M] = get_type_hints(gpu_flow.fn)["return"]
        found = made.by_stage(await asyncio.to_thread(artifacts_of_run, str(started.id)))
        self._until.end(gpu_flow.name)
        return found

    async def scheduled(self) -> bool:
        """Whether Prefect's scheduler made this run."""
        async with get_client() as client:
            return bool((await client.read_flow_run(UUID(flow_run.id))).auto_scheduled)

    async def queued(self, message: str | None) -> None:
        """Give the run's state a word of its own while it waits."""
        state: State[None] = Running() if message is None else Running(name="Queued", message=message)
        async with get_client() as client:
            await client.set_flow_run_state(UUID(flow_run.id), state, force=True)

    async def tell(self, line: str | None) -> None:
        """Write it into the run's log."""
        if line is not None:
            get_run_logger().warning(line)

    async def announce(self, title: str, cycle_id: int | None = None) -> None:
        """Name the flow run after its cycle, and show how long that still takes."""
        self._title = title
        self._showing.cycle = None if cycle_id is None else (cycle_id, title)
        async with get_client() as client:
            await client.update_flow_run(UUID(flow_run.id), name=title)

    async def report(self, of: str, markdown: str, text: str | None = None) -> None:
        """Keep the report as an artifact in the Prefect UI; one written again is a new version under the same key."""
        await acreate_markdown_artifact(markdown, key=of.replace(" ", "-"), description=f"Report of {of}")


@task(cache_policy=NO_CACHE, persist_result=False)
async def _stage(call: Callable[[], Any]) -> Any:
    try:
        return await in_thread(call)
    except CycleCancelled as cancelled:
        return Cancelled(message=str(cancelled))


def cycle_run_name() -> str:
    """Name of a cycle's flow run until its number is known: the configuration and the time."""
    asked = flow_run.parameters
    configuration = Path(asked.get("config") or asked.get("configuration") or "cycle").stem
    return f"{configuration}, {datetime.now().astimezone():%a %d %b %H:%M}"


def _how_to_go_on(state: State) -> str:
    if JobRefused.__name__ in (state.message or ""):
        return (
            "Run as it is, it ends alike: change what is named. An open cycle keeps its configuration until it is "
            "given up with `orchestrator cycle cancel N`; `orchestrator cycle show N` says more."
        )
    return "Run the cycle again; it goes on from the last checkpoint."


async def _final_state(flow_run_id: UUID) -> State:
    """The state in which the run ended; looks often at first, because small jobs are quick."""
    pause_s = POLL_S
    async with get_client() as client:
        while True:
            state = (await client.read_flow_run(flow_run_id)).state
            if state is not None and state.is_final():
                return state
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.02, MAX_POLL_S)


async def cancel(flow_run_id: UUID) -> None:
    """Ask the worker of a run to end it."""
    async with get_client() as client:
        # Not forced: a run that has just ended keeps its state, and one that no worker has begun is cancelled at once.
        await client.set_flow_run_state(flow_run_id, Cancelling())
