"""Tell the database how far a stage's job is and what it measures, so that any machine can follow it.

The job itself knows no database: it writes `progress.json` and `metrics.jsonl` (`models/runtime/job.py`), and the
worker beside it tells what stands there.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from sqlalchemy import Engine, func
from sqlalchemy.dialects.postgresql import insert

from db import tables as t
from db.session import transaction

EVERY_S = 2.0
# A file's time is that of the kernel's last tick.
TICK_S = 0.05

log = logging.getLogger(__name__)


class Progress(TypedDict):
    """What a job says of itself in `progress.json`."""

    phase: str
    step: int
    steps: int
    eta_s: float | None


class JobProgress:
    """What one attempt at a stage tells of its job."""

    def __init__(self, engine: Engine, stage_id: int, work: Path) -> None:
        self._engine, self._stage_id, self._work = engine, stage_id, work
        self._began_s = time.time() - TICK_S
        self._told_s = -math.inf
        self._said: Progress | None = None
        self._bytes = self._lines = 0
        """How much of metrics.jsonl was told."""

    def tell(self, *, last: bool = False) -> None:
        """Tell what is new, at most every two seconds; the `last` time without delay. Never fails a job."""
        now = time.monotonic()
        if not last and now - self._told_s < EVERY_S:
            return
        self._told_s = now
        try:
            self._tell(last)
        except Exception as error:
            # A database that is away, or a line that no number can be read from: hours of training matter more. What
            # was not told now is told the next time.
            log.warning("The progress of stage %d could not be told: %s", self._stage_id, error)

    def _tell(self, last: bool) -> None:
        progress = self._progress()
        # A job that goes on first cuts its metrics back to its checkpoint, and then says where it is.
        lines, size = self._new_lines() if progress is not None or self._said is not None or last else ([], 0)
        if not lines and (progress is None or progress == self._said):
            return
        with transaction(self._engine) as session:
            if progress is not None:
                row = {name: progress.get(name) for name in ("phase", "step", "steps", "eta_s")}
                statement = insert(t.StageProgress).values(stage_id=self._stage_id, **row)
                again = {**row, "told_at": func.clock_timestamp()}
                session.execute(statement.on_conflict_do_update(index_elements=["stage_id"], set_=again))
            if lines:
                rows = [
                    {"stage_id": self._stage_id, "line": self._lines + place, "numbers": line}
                    for place, line in enumerate(lines)
                ]
                session.execute(insert(t.StageMetrics).on_conflict_do_nothing(), rows)
        self._said = progress or self._said
        self._lines += len(lines)
        self._bytes += size

    def _progress(self) -> Progress | None:
        """What the job said of itself since this attempt began."""
        file = self._work / "progress.json"
        try:
            if file.stat().st_mtime < self._began_s:
                return None
            said: Progress = json.loads(file.read_text(encoding="utf-8"))
            return said
        except (OSError, ValueError):
            return None

    def _new_lines(self) -> tuple[list[Mapping[str, object]], int]:
        """The whole lines since the last look, and their bytes."""
        try:
            with (self._work / "metrics.jsonl").open("rb") as file:
                file.seek(self._bytes)
                text = file.read()
        except OSError:
            return [], 0
        whole = text[: text.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], len(whole)
