"""How long the open cycle still takes, from how long its stages took in earlier cycles of the same configuration.

Only what runs is counted: a person's decision takes as long as it takes. Without an earlier cycle nothing is guessed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cycles.cost import FIRST_STAGE
from orchestrator.cycles.record import same_configuration

Step = tuple[str, int]
"""A stage of a cycle, and the how manieth of its name it is: several policies are evaluated."""
EARLIER = 3
"""So many earlier cycles are looked at; of a step the median counts."""
SEARCHED = 50
"""Among so many of the newest cycles."""
LONGEST_GAP_S = 60.0
"""Between two stages a run of the pool is started; more than that was no part of the work."""
NOTHING_TO_GO_BY = "how long it takes is not known: no earlier cycle of this configuration to go by"


@dataclass(frozen=True)
class TimeLeft:
    """What is left of a cycle, by earlier ones of its configuration."""

    seconds: float
    share_done: float
    """Of the whole cycle's time, from 0 to 1."""
    by: int
    """The number of the newest cycle that it was learned from."""
    at: datetime
    running: bool = True
    """Whether a stage runs."""

    @property
    def said(self) -> str:
        """In words that stay true: when it was looked at is among them."""
        if self.seconds <= 0:
            return f"longer at it than cycle {self.by} was" if self.running else "every stage is done"
        return f"about {duration(self.seconds)} left at {self.at:%H:%M} UTC, going by cycle {self.by}"


def left_said(session: Session, cycle_id: int) -> str:
    """How long the cycle still takes, or that nobody knows, in words."""
    left = time_left(session, cycle_id)
    return left.said if left is not None else NOTHING_TO_GO_BY


def time_left(session: Session, cycle_id: int, now: datetime | None = None) -> TimeLeft | None:
    """How long the cycle still takes; None where no earlier cycle of its configuration ended with a decision."""
    now = now or datetime.now(UTC)
    cycle = session.get_one(t.Cycle, cycle_id)
    earlier = _earlier(session, cycle)
    if not earlier:
        return None
    usual = _medians([_seconds_by_step(_rows(session, one)) for one in earlier])
    rows = _rows(session, cycle)
    finished = {step for step, row in _steps(rows) if row.ended_at is not None}
    running = {step: row for step, row in _steps(rows) if row.ended_at is None}
    order = list(usual)
    # What a later step has left behind is not to come any more.
    passed = max((place for place, step in enumerate(order) if step in finished), default=-1)
    left = 0.0
    for place, step in enumerate(order):
        if step in running:
            left += _left_of(session, running[step], usual[step], now)
        elif step not in finished and place > passed:
            left += usual[step]
    total = sum(usual.values())
    return TimeLeft(left, max(0.0, 1 - left / total) if total else 1.0, earlier[0].number, now, bool(running))


def duration(seconds: float) -> str:
    """A time as people say it: 42 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _earlier(session: Session, cycle: t.Cycle) -> list[t.Cycle]:
    """Cycles of the same configuration that ended with a decision, the newest first."""
    ended = (
        select(t.Cycle)
        .where(t.Cycle.id < cycle.id, t.Cycle.number > 0, t.Cycle.state.in_(("promoted", "refused")))
        .order_by(t.Cycle.id.desc())
        .limit(SEARCHED)
    )
    return [one for one in session.scalars(ended) if same_configuration(one.config, cycle.config)][:EARLIER]


def _rows(session: Session, cycle: t.Cycle) -> list[t.Stage]:
    """The stages of a cycle that ended well or run; its report written anew after its end is no part of it."""
    query = select(t.Stage).where(t.Stage.cycle_id == cycle.id, t.Stage.state != "failed").order_by(t.Stage.id)
    if cycle.ended_at is not None:
        query = query.where(t.Stage.started_at <= cycle.ended_at, t.Stage.ended_at.is_not(None))
    rows = list(session.scalars(query))
    # The row of a stage whose process was killed says that it runs, until another attempt has ended.
    restarted = max((row.id for row in rows if row.name == FIRST_STAGE), default=0)
    return [row for row in rows if row.ended_at is not None or row.id > restarted]


def _steps(rows: Sequence[t.Stage]) -> Iterator[tuple[Step, t.Stage]]:
    """The steps with their rows; what a run that was started again only found is no step."""
    counted, made = Counter[str](), set[tuple[str, int]]()
    for row in rows:
        if row.artifact_id is not None:
            if row.state == "found" and (row.name, row.artifact_id) in made:
                continue
            made.add((row.name, row.artifact_id))
        yield (row.name, counted[row.name]), row
        counted[row.name] += 1


def _seconds_by_step(rows: Sequence[t.Stage]) -> dict[Step, float]:
    """How much longer each step made the cycle: what ran beside another one counts once, and the way to it too."""
    seconds: dict[Step, float] = {}
    until: datetime | None = None
    for step, row in _steps(rows):
        assert row.ended_at is not None
        until = until or row.started_at
        gap = min(max(0.0, (row.started_at - until).total_seconds()), LONGEST_GAP_S)
        seconds[step] = gap + max(0.0, (row.ended_at - max(row.started_at, until)).total_seconds())
        until = max(until, row.ended_at)
    return seconds


def _medians(cycles: Sequence[dict[Step, float]]) -> dict[Step, float]:
    """The median of each step that the newest cycle took, in its order."""
    return {step: statistics.median(one[step] for one in cycles if step in one) for step in cycles[0]}


def _left_of(session: Session, row: t.Stage, usual_s: float, now: datetime) -> float:
    """What is left of a stage that runs: by its usual time, or by what its job says where that is more."""
    left = usual_s - (now - row.started_at).total_seconds()
    told = session.get(t.StageProgress, row.id)
    if told is not None and told.eta_s is not None:
        left = max(left, told.eta_s - (now - told.told_at).total_seconds())
    return max(0.0, left)
