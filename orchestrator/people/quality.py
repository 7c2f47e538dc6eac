"""Raters in figures, for whoever looks after them. Shown, never a reason for an automatic ban.

The paper's authors judged raters by their writing and not by agreement: agreement is lower on harder topics and would
punish good authors (paper.md, 2.3). So the figures stand beside the dialogues, to be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import ModelSummary
from models.runtime.results import result_from_json
from models.statistics.intervals import wilson
from orchestrator.store import ledger


@dataclass(frozen=True)
class RaterFigures:
    """One rater's work in numbers."""

    id: int
    handle: str
    kind: str
    platform: str | None
    status: str
    comparisons: int
    dialogues: int
    median_s: float | None
    """Median time from two complete replies to the choice, as the page measured it; None where it measured none."""
    side_a: int
    """Choices of the side on the left."""
    decided: int
    """Choices of either side."""
    undecided: int
    """Can't tell, and ties."""
    last_at: datetime | None

    @property
    def position_bias(self) -> tuple[float, float] | None:
        """95 % interval (Wilson) of the share of choices of side a; without bias it holds 0.5 in 19 of 20 raters."""
        return wilson(self.side_a, self.decided) if self.decided else None


def _figures() -> Select[*tuple[Any, ...]]:
    comparison = t.Comparison
    done = (
        select(
            comparison.rater_id,
            func.count().label("comparisons"),
            func.count(func.distinct(t.Pair.dialogue_id)).label("dialogues"),
            func.percentile_cont(0.5).within_group(comparison.duration_ms).label("median_ms"),
            func.count().filter(comparison.side == "a").label("side_a"),
            func.count().filter(comparison.side != "none").label("decided"),
            func.count().filter(comparison.side == "none").label("undecided"),
            func.max(comparison.created_at).label("last_at"),
        )
        .join(t.Pair, t.Pair.id == comparison.pair_id)
        # An edit is better than its original by its making; its side says nothing about reading.
        .where(t.Pair.edit_of_id.is_(None))
        .group_by(comparison.rater_id)
        .subquery()
    )
    return (
        select(
            t.Rater.id,
            t.Rater.handle,
            t.Rater.kind,
            t.Rater.platform,
            t.Rater.status,
            func.coalesce(done.c.comparisons, 0),
            func.coalesce(done.c.dialogues, 0),
            done.c.median_ms / 1000,
            func.coalesce(done.c.side_a, 0),
            func.coalesce(done.c.decided, 0),
            func.coalesce(done.c.undecided, 0),
            done.c.last_at,
        )
        .outerjoin(done, done.c.rater_id == t.Rater.id)
        .order_by(func.coalesce(done.c.comparisons, 0).desc(), t.Rater.id)
    )


def raters_by_volume(session: Session, limit: int = 200, offset: int = 0) -> list[RaterFigures]:
    """Raters with the most comparisons first, imported ones left out."""
    query = _figures().where(t.Rater.kind.in_(("human", "synthetic"))).limit(limit).offset(offset)
    return [RaterFigures(*row) for row in session.execute(query)]


def figures_of(session: Session, rater_id: int) -> RaterFigures | None:
    """One rater's figures; None where there is no such rater."""
    row = session.execute(_figures().where(t.Rater.id == rater_id)).one_or_none()
    return None if row is None else RaterFigures(*row)


@dataclass(frozen=True)
class TaskTime:
    """How long a rater took for the choices of one task."""

    task: str
    comparisons: int
    median_s: float | None


def times_by_task(session: Session, rater_id: int) -> list[TaskTime]:
    """A rater's median time per task, the task with most comparisons first; edits are no choices and left out."""
    number = func.count()
    rows = session.execute(
        select(t.Dialogue.task, number, func.percentile_cont(0.5).within_group(t.Comparison.duration_ms) / 1000)
        .select_from(t.Comparison)
        .join(t.Pair, t.Pair.id == t.Comparison.pair_id)
        .join(t.Dialogue, t.Dialogue.id == t.Pair.dialogue_id)
        .where(t.Comparison.rater_id == rater_id, t.Pair.edit_of_id.is_(None))
        .group_by(t.Dialogue.task)
        .order_by(number.desc(), t.Dialogue.task)
    )
    return [TaskTime(task, n, None if median is None else float(median)) for task, n, median in rows]


@dataclass(frozen=True)
class Agreement:
    """How often a preference model scored higher what a rater chose, of the rater's comparisons it never trained on."""

    accuracy: float
    ci: tuple[float, float]
    n: int


def agreement(session: Session) -> dict[int, Agreement]:
    """The newest preference model's agreement with each rater, by rater id; raters without held-out choices are absent.

    Shown beside the dialogues, to be read: low agreement is as often a harder topic as a careless rater.
    """
    # One that an experiment alone has trained, on half of the comparisons say, comes after all that cycles use.
    of_a_cycle = select(t.Stage.id).where(t.Stage.artifact_id == t.Artifact.id).exists()
    model = session.scalar(
        select(t.Artifact)
        .where(t.Artifact.kind == "preference_model", ~ledger.is_watcher())
        .order_by(of_a_cycle.desc(), t.Artifact.id.desc())
        .limit(1)
    )
    if model is None:
        return {}
    found = result_from_json(ModelSummary, model.results, where=f"the results of preference model {model.id}")
    return {
        int(rater): Agreement(agreed.accuracy, agreed.ci, agreed.n)
        for rater, agreed in found.held_out.by_rater.items()
        if agreed.accuracy is not None
    }


def repeated_openings(session: Session, rater_id: int) -> list[tuple[str, int]]:
    """Openings that the rater wrote more than once, case and white space aside, with how often; most first."""
    opening = func.min(t.Message.content)
    times = func.count()
    rows = session.execute(
        select(opening, times)
        .join(t.Dialogue, t.Dialogue.id == t.Message.dialogue_id)
        .where(t.Dialogue.rater_id == rater_id, t.Message.parent_id.is_(None), t.Dialogue.split_key.is_not(None))
        .group_by(t.Dialogue.split_key)
        .having(times > 1)
        .order_by(times.desc(), opening)
        .limit(20)
    )
    return [(text, count) for text, count in rows]
