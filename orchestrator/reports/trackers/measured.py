"""The runs of jobs and what they measured: by the rows that workers told, and by the files of this machine beside them.

Files alone tell of experiments, which have no stage, and of jobs that were started by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select

from db import tables as t
from orchestrator.database import database
from orchestrator.reports.ppo_runs import MetricsLine, measured_by, read_lines
from orchestrator.settings import Settings

SHORT = 12


@dataclass(frozen=True)
class MeasuredRun:
    """One run of one job."""

    name: str
    """After its job and the beginning of its fingerprint, e.g. `train_policy-2f7c61ab90d4`."""
    lines: list[MetricsLine]
    """An object per line of its metrics, each with its `step`."""
    wall_time_s: float
    """When it measured last, in seconds since 1970.

    Times are no part of the metrics, so that two runs of the same job give the same: all lines carry this one.
    """
    facts: dict[str, str] = field(default_factory=dict)
    """What else is known of it: cycle, configuration, fingerprint."""


def measured_runs(settings: Settings) -> list[MeasuredRun]:
    """Every run that any worker told of, and those of this machine that only files tell of; by name."""
    runs = _told() if settings.database_url is not None else {}
    for file in settings.home.glob("work/*/metrics.jsonl"):
        found = _of_files(file.parent)
        if found is not None:
            runs.setdefault(found.name, found)
    return [runs[name] for name in sorted(runs)]


def numbers_of(line: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """The finite numbers of a line, by their names; its step, texts and switches are none."""
    for name, value in line.items():
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value)


def _told() -> dict[str, MeasuredRun]:
    lines = select(t.StageMetrics.stage_id, func.max(t.StageMetrics.created_at).label("last"))
    told = lines.group_by(t.StageMetrics.stage_id).subquery()
    with database() as session:
        rows = session.execute(
            select(t.Stage, t.Cycle, told.c.last)
            .join(told, told.c.stage_id == t.Stage.id)
            .join(t.Cycle, t.Cycle.id == t.Stage.cycle_id)
            .order_by(t.Stage.id)
        )
        # Of several attempts at one thing the last has what the others had, and more.
        newest = {f"{stage.name}-{(stage.fingerprint or '')[:SHORT]}": (stage, *of) for stage, *of in rows}
    return {
        name: MeasuredRun(
            name,
            measured_by(stage.id),
            last.timestamp(),
            {"cycle": str(cycle.number), "configuration": cycle.name, "fingerprint": stage.fingerprint or ""},
        )
        for name, (stage, cycle, last) in newest.items()
    }


def _of_files(folder: Path) -> MeasuredRun | None:
    lines = read_lines(folder)
    try:
        job = json.loads((folder / "spec.json").read_text(encoding="utf-8"))["job"]
    except FileNotFoundError:
        job = "job"
    if not lines:
        return None
    fingerprint = folder.name.partition("-")[0]
    measured_s = (folder / "metrics.jsonl").stat().st_mtime
    return MeasuredRun(f"{job}-{folder.name[:SHORT]}", lines, measured_s, {"fingerprint": fingerprint})
