"""Start a run of the cycle flow through Prefect, and follow it to its end by what our own tables say.

An experiment's stages have no rows there; its run is followed by what Prefect tells of its tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from db import tables as t
from orchestrator.cycles.outcomes import ended_as_it_should
from orchestrator.database import database
from orchestrator.errors import CycleError, ServiceUnavailable
from orchestrator.instance.prefect_api import ENDED, FlowRunState, PrefectApi
from orchestrator.instance.training_jobs import fresh_name

DEPLOYMENT = "cycle/weekly"
POLL_S = 0.5
# A restarted server is back within this time.
OUTAGE_S = 60.0

Say = Callable[[str], None]
News = Callable[[], list[str]]
"""What has happened since it was last asked, as lines for a person."""


def start_cycle(api: PrefectApi, config: Path, overrides: list[str], *, fresh: bool = False) -> str:
    """Start a run of the cycle's Prefect deployment; returns the flow run's id."""
    return api.start_run(DEPLOYMENT, flow_parameters(config, overrides, fresh=fresh))


def flow_parameters(config: Path, overrides: list[str], *, fresh: bool = False) -> dict[str, Any]:
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
            # "Late" means that no worker takes it.
            say(f"the run is {state.line}")
        said_state = state.name
        time.sleep(POLL_S)


class Progress:
    """What has happened in the open cycle since the last look, as lines for a person."""

    def __init__(self, home: Path) -> None:
        self._home = home
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
                lines += self._job_line(stage)
        return lines

    def _job_line(self, stage: t.Stage) -> list[str]:
        """The stage's job's own report, every tenth of the way."""
        report = _report(self._home / "work", stage)
        if report is None or not report.get("steps"):
            return []
        done = report["step"] / report["steps"]
        if int(10 * done) <= int(10 * self._said[stage.id]):
            return []
        self._said[stage.id] = done
        eta = f", {report['eta_s']:.0f} s left" if report.get("eta_s") is not None else ""
        return [f"{stage.name}: {report.get('phase', 'step')} {report['step']} of {report['steps']}{eta}"]

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


def _report(work: Path, stage: t.Stage) -> dict[str, Any] | None:
    """What the stage's job wrote about itself since the stage began; None before that, or on another machine."""
    if stage.fingerprint is None:
        return None
    for file in (
        work / stage.fingerprint / "progress.json",
        work / fresh_name(stage.fingerprint, stage.cycle_id) / "progress.json",
    ):
        try:
            if file.stat().st_mtime >= stage.started_at.timestamp():
                report: dict[str, Any] = json.loads(file.read_text())
                return report
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            continue
    return None
