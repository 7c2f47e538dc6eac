"""Start a run of the cycle flow through Prefect, and follow it to its end by what our own tables say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from db import tables as t
from orchestrator.cycles import database
from orchestrator.errors import ServiceUnavailable
from orchestrator.prefect_api import FlowRunState, PrefectApi

DEPLOYMENT = "cycle/weekly"
POLL_S = 0.5
# A restarted server is back within this time.
OUTAGE_S = 60.0

Say = Callable[[str], None]


def start_cycle(
    api: PrefectApi, config: Path, overrides: list[str], *, fresh: bool = False, deployment: str = DEPLOYMENT
) -> str:
    """Start a run of the cycle's Prefect deployment; returns the flow run's id."""
    parameters: dict[str, Any] = {"config": str(config.absolute()), "overrides": overrides, "fresh": fresh}
    return api.start_run(deployment, parameters)


def follow(api: PrefectApi, flow_run_id: str, home: Path, say: Say) -> FlowRunState:
    """Wait for the end of the run, telling each stage as it begins and how far its job is; returns the last state.

    Raises:
        ServiceUnavailable: the Prefect server is gone for a minute.
    """
    progress = Progress(home)
    last_answer_s = time.monotonic()
    said_state = ""
    while True:
        try:
            state = api.state(flow_run_id)
            last_answer_s = time.monotonic()
        except ServiceUnavailable:
            if time.monotonic() - last_answer_s > OUTAGE_S:
                raise
            time.sleep(POLL_S)
            continue
        for line in progress.news():
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
        self._running: t.Stage | None = None
        self._said_step = -1.0

    def news(self) -> list[str]:
        """One line per stage that ended or began, and now and then one about the running job."""
        lines: list[str] = []
        with database() as session:
            if self._running is not None:
                lines += self._ended(session.get(t.Stage, self._running.id))
            stages = session.scalars(select(t.Stage).where(t.Stage.id > self._last_stage_id).order_by(t.Stage.id))
            for stage in stages:
                self._last_stage_id = stage.id
                if stage.state == "running":
                    self._running = stage
                    self._said_step = -1.0
                    lines.append(f"{stage.name} …")
                else:
                    lines += self._ended(stage)
        return lines + self._job_line()

    def _ended(self, stage: t.Stage | None) -> list[str]:
        if stage is None or stage.state == "running" or stage.ended_at is None:
            return []
        self._running = None
        seconds = (stage.ended_at - stage.started_at).total_seconds()
        how = {"found": "found, not repeated", "failed": f"failed: {stage.error}"}.get(stage.state, "done")
        return [f"{stage.name} {how} ({seconds:.1f} s)"]

    def _job_line(self) -> list[str]:
        """The running job's own report, every tenth of the way."""
        if self._running is None:
            return []
        report = _newest_report(self._home / "work", self._running.started_at.timestamp())
        if report is None or not report.get("steps"):
            return []
        done = report["step"] / report["steps"]
        if int(10 * done) <= int(10 * self._said_step):
            return []
        self._said_step = done
        eta = f", {report['eta_s']:.0f} s left" if report.get("eta_s") is not None else ""
        return [f"{self._running.name}: {report.get('phase', 'step')} {report['step']} of {report['steps']}{eta}"]

    @staticmethod
    def _newest_stage_id() -> int:
        with database() as session:
            return session.scalars(select(t.Stage.id).order_by(t.Stage.id.desc()).limit(1)).first() or 0


def _newest_report(work: Path, since_s: float) -> dict[str, Any] | None:
    """The progress file written last since the stage began; on one machine one job runs at a time."""
    newest: tuple[float, Path] | None = None
    for file in work.glob("*/progress.json"):
        try:
            written = file.stat().st_mtime
        except FileNotFoundError:
            continue
        if written >= since_s and (newest is None or written > newest[0]):
            newest = (written, file)
    if newest is None:
        return None
    try:
        report: dict[str, Any] = json.loads(newest[1].read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return report
