"""How far the jobs of a cycle are, in the UI: a bar and a line with the time left each, and PPO's course as a table.

Read from the rows that the worker tells (`orchestrator/stages/job_progress.py`), so that it may train on any machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.artifacts import acreate_progress_artifact, acreate_table_artifact, aupdate_progress_artifact
from prefect.client.schemas.actions import ArtifactUpdate

from orchestrator.cycles.runs import how_far
from orchestrator.cycles.time_left import TimeLeft, time_left
from orchestrator.database import database
from orchestrator.reports.ppo_progress import course
from orchestrator.reports.ppo_runs import JobOfRun, jobs_of_runs, measured_by


def whole_cycle(cycle_id: int) -> TimeLeft | None:
    """What is left of a cycle now."""
    with database() as session:
        return time_left(session, cycle_id)


LOOK_S = 5.0
"""Between two looks: the server is told of a change no more often than this."""


@dataclass
class Shown:
    """What the UI has of one job."""

    bar: UUID | None = None
    table: UUID | None = None
    lines: int = 0
    tenths: int = -1
    said: str = ""


class Showing:
    """The jobs of some runs, and what was shown of them in the flow run in which this is used."""

    def __init__(self) -> None:
        self._flow_run_ids: set[str] = set()
        self._shown: dict[int, Shown] = {}
        self.cycle: tuple[int, str] | None = None
        """The cycle, by id and title, whose time left is shown beside the jobs'."""
        self._whole = Shown()

    @asynccontextmanager
    async def following(self, flow_run_id: str) -> AsyncIterator[None]:
        """Show how far the jobs of that run are, until the block ends."""
        self._flow_run_ids.add(flow_run_id)
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self.look()

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Show what is new. What can't be shown is left out: nobody's training ends for it."""
        try:
            for job in await asyncio.to_thread(jobs_of_runs, self._flow_run_ids):
                await self._show(job, self._shown.setdefault(job.stage_id, Shown()))
            if self.cycle is not None:
                id_, title = self.cycle
                await self._show_cycle(title, await asyncio.to_thread(whole_cycle, id_))
        except Exception as error:
            get_run_logger().debug("progress was not shown: %s", error)

    async def _show(self, job: JobOfRun, shown: Shown) -> None:
        words = f"{job.title}: {how_far(job.progress)}"
        if words != shown.said:
            shown.said = words
            await self._show_bar(job, shown, words)
        if job.num_lines > shown.lines and job.stage == "train_policy":
            shown.lines = job.num_lines
            await self._show_table(job, shown)

    async def _show_cycle(self, title: str, left: TimeLeft | None) -> None:
        """A bar for the whole cycle, once there is an earlier one to go by."""
        if left is None or left.said == self._whole.said:
            return
        self._whole.said, percent, words = left.said, 100 * left.share_done, f"{title}: {left.said}"
        if self._whole.bar is None:
            self._whole.bar = await acreate_progress_artifact(percent, key="progress-cycle", description=words)
        else:
            await aupdate_progress_artifact(self._whole.bar, progress=percent, description=words)

    async def _show_bar(self, job: JobOfRun, shown: Shown, words: str) -> None:
        share = job.share
        if int(10 * share) > shown.tenths:
            shown.tenths = int(10 * share)
            get_run_logger().info(words)
        if shown.bar is None:
            key = f"progress-{job.stage.replace('_', '-')}"
            shown.bar = await acreate_progress_artifact(100 * share, key=key, description=words)
        else:
            await aupdate_progress_artifact(shown.bar, progress=100 * share, description=words)

    async def _show_table(self, job: JobOfRun, shown: Shown) -> None:
        rows = course(await asyncio.to_thread(measured_by, job.stage_id))
        if shown.table is None:
            description = f"{job.title}: score, KL, entropy, length and tripwires by iteration"
            shown.table = await acreate_table_artifact(rows, key="ppo-course", description=description)
            return
        async with get_client() as client:
            await client.update_artifact(shown.table, ArtifactUpdate(data=rows))
