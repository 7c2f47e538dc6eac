"""Start a run of the cycle flow through Prefect, and follow it to its end by what our own tables say.

An experiment's stages have no rows there; its run is followed by what Prefect tells of its tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cycles.outcomes import ended_as_it_should
from orchestrator.cycles.time_left import duration
from orchestrator.database import database
from orchestrator.errors import CycleError, ServiceUnavailable
from orchestrator.instance.prefect_api import ENDED, FlowRunState, PrefectApi

DEPLOYMENT = "cycle/weekly"
MEASURE_ELO = "measure-elo/measure-elo"
"""Measures what people said since, and brings the reports up to date."""
POLL_S = 0.5
# A restarted server is back within this time.
OUTAGE_S = 60.0

Say = Callable[[str], None]
News = Callable[[], list[str]]
"""What has happened since it was last asked, as lines for a person."""


def start_cycle(
    api: PrefectApi, config: Path, overrides: list[str], *, fresh: bool = False, stage: str | None = None
) -> str:
    """Start a run of the cycle's Prefect deployment, or of the one that ends after a stage; the flow run's id."""
    parameters = flow_parameters(config, overrides, fresh=fresh)
    if stage is not None:
        return api.start_run("run-stage/run-stage", {**parameters, "stage": stage})
    return api.start_run(DEPLOYMENT, parameters)


def flow_parameters(config: Path, overrides: list[str], *, fresh: bool = False) -> Mapping[str, object]:
    """The parameters that the flows of cycles and experiments share."""
    return {"config": str(config.absolute()), "overrides": overrides, "fresh": fresh}


def print_to_end(api: PrefectApi, flow_run_id: str, news: News, *, wait: bool) -> None:
    """Print where the run is to be seen, and, where asked to wait, what happens until its end.

    Raises:
        CycleError: the run ended otherwise than it should.
    """
    print(f"Flow run: {api.ui_url}/runs/flow-run/{flow_run_id}", flush=True)
    if not wait:
        return
    started_s = time.monotonic()
    state = follow(
        api, flow_run_id, news, lambda line: print(f"{time.monotonic() - started_s:7.1f} s  {line}", flush=True)
    )
    if not ended_as_it_should(state.type, state.name):
        raise CycleError(f"The run ended as {state.line}")
    print(state.line)


def follow(api: PrefectApi, flow_run_id: str, news: News, say: Say) -> FlowRunState:
    """Wait for the end of the run, telling the news meanwhile; returns the last state.

    Raises:
        ServiceUnavailable: the Prefect server is gone for a minute.
    """
    last_answer_s = time.monotonic()
    said_state = ""
    while True:
        try:
            state = api.state(flow_run_id)
            lines = news()
            last_answer_s = time.monotonic()
        except ServiceUnavailable:
            if time.monotonic() - last_answer_s > OUTAGE_S:
                raise
            time.sleep(POLL_S)
            continue
        for line in lines:
            say(line)
        if state.ended:
            return state
        if state.name != said_state and state.name not in ("Running", "Pending", "Scheduled"):
            # "Late" means that no worker takes it; a worker that does says so in a word of Prefect's own.
            say("the run is starting" if state.type == "PENDING" else f"the run is {state.line}")
        said_state = state.name
        time.sleep(POLL_S)


class Progress:
    """What has happened in the open cycle since the last look, as lines for a person."""

    def __init__(self) -> None:
        self._last_stage_id = self._newest_stage_id()
        self._said: dict[int, float] = {}
        """Stages that run, by id, with the share of their job that was last told."""

    def news(self) -> list[str]:
        """One line per stage that ended or began, and now and then one about each job that runs."""
        lines: list[str] = []
        with database() as session:
            stages = session.scalars(
                select(t.Stage)
                .where((t.Stage.id > self._last_stage_id) | t.Stage.id.in_(self._said))
                .order_by(t.Stage.id)
            )
            for stage in stages:
                self._last_stage_id = max(self._last_stage_id, stage.id)
                if stage.state != "running" and stage.ended_at is not None:
                    lines.append(_ended(stage))
                    self._said.pop(stage.id, None)
                    continue
                if stage.id not in self._said:
                    lines.append(f"{stage.name} …")
                    self._said[stage.id] = -1.0
                lines += self._job_line(stage, session.get(t.StageProgress, stage.id))
        return lines

    def _job_line(self, stage: t.Stage, progress: t.StageProgress | None) -> list[str]:
        """What the stage's job says of itself, every tenth of the way."""
        if progress is None or not progress.steps:
            return []
        done = progress.step / progress.steps
        if int(10 * done) <= int(10 * self._said[stage.id]):
            return []
        self._said[stage.id] = done
        return [f"{stage.name}: {how_far(progress)}"]

    @staticmethod
    def _newest_stage_id() -> int:
        with database() as session:
            return session.scalars(select(t.Stage.id).order_by(t.Stage.id.desc()).limit(1)).first() or 0


class TaskProgress:
    """What has happened among the tasks of a flow run since the last look: a stage of an experiment is one."""

    def __init__(self, api: PrefectApi, flow_run_id: str) -> None:
        self._api, self._flow_run_id = api, flow_run_id
        self._said: dict[str, bool] = {}
        """Tasks that were told, by id, with whether they had ended."""

    def news(self) -> list[str]:
        """One line per task that ended or began."""
        lines: list[str] = []
        for run in self._api.task_runs(self._flow_run_id):
            ended = run["state_type"] in ENDED
            if run["id"] not in self._said and not ended and run["state_type"] == "RUNNING":
                lines.append(f"{run['name']} …")
                self._said[run["id"]] = False
            elif ended and not self._said.get(run["id"], False):
                how = "done" if run["state_type"] == "COMPLETED" else run["state_name"].lower()
                lines.append(f"{run['name']} {how} ({run['total_run_time']:.1f} s)")
                self._said[run["id"]] = True
        return lines


def _ended(stage: t.Stage) -> str:
    assert stage.ended_at is not None
    seconds = (stage.ended_at - stage.started_at).total_seconds()
    how = {"found": "found, not repeated", "failed": f"failed: {stage.error}"}.get(stage.state, "done")
    return f"{stage.name} {how} ({seconds:.1f} s)"


def jobs_of(session: Session, cycle_id: int) -> dict[str, str]:
    """Where the jobs of a cycle are and how long they still take, by the names of their stages, as the rows have it."""
    running = session.execute(
        select(t.Stage.name, t.StageProgress)
        .join(t.StageProgress, t.StageProgress.stage_id == t.Stage.id)
        .where(t.Stage.cycle_id == cycle_id, t.Stage.state == "running")
        .order_by(t.Stage.id)
    )
    return {name: how_far(progress) for name, progress in running}


def how_far(progress: t.StageProgress) -> str:
    """Where a job is and how long it still takes, in words: "iteration 3 of 40, 2 min left"."""
    of = f" of {progress.steps}" if progress.steps else ""
    left = f", {duration(progress.eta_s)} left" if progress.eta_s is not None else ""
    return f"{progress.phase} {progress.step}{of}{left}"
