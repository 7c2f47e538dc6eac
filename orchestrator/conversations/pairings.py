"""The pairing table: which contestants meet in a task, how often, and what that brought.

Who they are is in `contestants.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import bindparam, func, select, true
from sqlalchemy.orm import Session, aliased

from db import tables as t
from orchestrator.conversations.contestants import (
    CONTESTANT_WIDTH,
    Contestant,
    ContestantError,
    contestant_columns,
    joined_contestant,
)
from orchestrator.people.tasks import TaskName
from orchestrator.store.deployments import LIVE, LiveDeployment, live_deployment


@dataclass(frozen=True)
class ActivePairing:
    """Two contestants that meet in a task, drawn with this weight."""

    id: int
    task: TaskName
    weight: float
    cycle_id: int | None
    a: Contestant
    b: Contestant


@dataclass(frozen=True)
class PairingFigures:
    """A row of the pairing table and what it brought so far."""

    pairing: ActivePairing
    created_at: datetime
    ended_at: datetime | None
    pairs: int
    """Pairs drawn by it."""
    complete: int
    """Pairs of which both replies are there."""
    compared: int
    won_a: int
    won_b: int
    undecided: int


_A, _B = joined_contestant(), joined_contestant()
_PAIRINGS = (
    select(
        t.Pairing.id,
        t.Pairing.task,
        t.Pairing.weight,
        t.Pairing.cycle_id,
        *(
            column.label(f"{side}_{number}")
            for side, joined in (("a", _A), ("b", _B))
            for number, column in enumerate(contestant_columns(*joined))
        ),
    )
    .join(_A[0], _A[0].id == t.Pairing.contestant_a_id)
    .outerjoin(_A[1], _A[1].id == _A[0].snapshot_id)
    .outerjoin(_A[2], _A[2].id == _A[0].preference_model_id)
    .join(_B[0], _B[0].id == t.Pairing.contestant_b_id)
    .outerjoin(_B[1], _B[1].id == _B[0].snapshot_id)
    .outerjoin(_B[2], _B[2].id == _B[0].preference_model_id)
    .order_by(t.Pairing.id)
)
_ACTIVE = _PAIRINGS.where(t.Pairing.ended_at.is_(None))
_LIVE_ROW = LIVE.cte("live")
_TASK_PAIRINGS = _ACTIVE.where(t.Pairing.task == bindparam("task")).subquery("pairings")
# The live deployment is a single row, so this is the list of pairings beside it, or it alone.
_DRAWABLE = select(_LIVE_ROW, _TASK_PAIRINGS).join(_TASK_PAIRINGS, true(), isouter=True)


def drawable(session: Session, task: str) -> tuple[LiveDeployment | None, list[ActivePairing]]:
    """The live deployment and the active pairings of a task, in one query: every pair that is drawn asks for them."""
    rows = session.execute(_DRAWABLE, {"task": task}).all()
    if not rows:
        return None, active_pairings(session, task)
    width = len(fields(LiveDeployment))
    return LiveDeployment(*rows[0][:width]), [_pairing(row[width:]) for row in rows if row[width] is not None]


def active_pairings(session: Session, task: str | None = None) -> list[ActivePairing]:
    """The rows of the pairing table in force, oldest first; of one task where it is given."""
    query = _ACTIVE if task is None else _ACTIVE.where(t.Pairing.task == task)
    return [_pairing(row) for row in session.execute(query)]


def pairing_figures(session: Session, limit: int = 100) -> list[PairingFigures]:
    """Pairings in force and ended ones with what each brought; those in force first, the newest first."""
    complete = (
        select(func.count(t.Candidate.text) == 2)
        .where(t.Candidate.pair_id == t.Pair.id)
        .correlate(t.Pair)
        .scalar_subquery()
    )
    # Which side of the pair was the pairing's contestant a: by contestant, else by weights.
    side_a = aliased(t.Candidate)
    contestant_a = aliased(t.Contestant)
    a_side = (
        select(side_a.side)
        .where(
            side_a.pair_id == t.Pair.id,
            (side_a.contestant_id == contestant_a.id)
            | ((contestant_a.kind == "policy") & (side_a.snapshot_id == contestant_a.snapshot_id)
               & side_a.contestant_id.is_(None)),
        )
        .order_by(side_a.side)
        .limit(1)
        .correlate(t.Pair, contestant_a)
        .scalar_subquery()
    )  # fmt: skip
    brought = (
        select(
            t.Pair.pairing_id,
            t.Pair.id,
            complete.label("complete"),
            a_side.label("a_side"),
            t.Comparison.side,
        )
        .join(t.Pairing, t.Pairing.id == t.Pair.pairing_id)
        .join(contestant_a, contestant_a.id == t.Pairing.contestant_a_id)
        .outerjoin(t.Comparison, t.Comparison.pair_id == t.Pair.id)
        .subquery()
    )
    decided = brought.c.side.in_(("a", "b"))
    counts = {
        row.pairing_id: row
        for row in session.execute(
            select(
                brought.c.pairing_id,
                func.count(brought.c.id.distinct()).label("pairs"),
                func.count(brought.c.id.distinct()).filter(brought.c.complete).label("complete"),
                func.count(brought.c.side).label("compared"),
                func.count().filter(decided, brought.c.side == brought.c.a_side).label("won_a"),
                func.count().filter(decided, brought.c.side != brought.c.a_side).label("won_b"),
                func.count().filter(brought.c.side == "none").label("undecided"),
            ).group_by(brought.c.pairing_id)
        )
    }
    query = _PAIRINGS.add_columns(t.Pairing.created_at, t.Pairing.ended_at).order_by(None)
    rows = session.execute(query.order_by(t.Pairing.ended_at.isnot(None), t.Pairing.id.desc()).limit(limit))
    found = []
    for row in rows:
        count = counts.get(row.id)
        numbers = (0,) * 6 if count is None else tuple(count)[1:]
        found.append(PairingFigures(_pairing(row[:-2]), row.created_at, row.ended_at, *numbers))
    return found


def open_pairing(
    session: Session, task: str, a_id: int, b_id: int, cycle_id: int | None = None, weight: float = 1.0
) -> t.Pairing:
    """Let two contestants meet in a task from now on; one that is in force already is returned as it is.

    Raises:
        ContestantError: there is no such task, or the weight is not above 0 and finite.
    """
    if task not in get_args(TaskName):
        raise ContestantError(f"There is no task {task!r}; expected one of: {', '.join(get_args(TaskName))}.")
    if not 0 < weight <= 1e6:
        raise ContestantError(f"The pairing's weight is {weight}; expected a number above 0, at most a million.")
    kept = session.execute(
        select(t.Pairing)
        .where(
            t.Pairing.task == task,
            t.Pairing.contestant_a_id == a_id,
            t.Pairing.contestant_b_id == b_id,
            t.Pairing.cycle_id.is_not_distinct_from(cycle_id),
            t.Pairing.weight == weight,
            t.Pairing.ended_at.is_(None),
        )
        .limit(1)
    ).scalar_one_or_none()
    if kept is not None:
        return kept
    pairing = t.Pairing(task=task, contestant_a_id=a_id, contestant_b_id=b_id, cycle_id=cycle_id, weight=weight)
    session.add(pairing)
    session.flush()
    return pairing


def end_pairing(session: Session, pairing_id: int) -> None:
    """Take a row of the pairing table out of force; what it brought stays."""
    pairing = session.get(t.Pairing, pairing_id, with_for_update=True)
    if pairing is None:
        raise ContestantError(f"There is no pairing {pairing_id}. `orchestrator pairing list` shows those there are.")
    if pairing.ended_at is None:
        pairing.ended_at = datetime.now(UTC)
        session.flush()


@dataclass(frozen=True)
class Served:
    """Digests of what the policy server must hold."""

    policies: frozenset[str]
    preference_models: frozenset[str]


def served(session: Session) -> Served:
    """What raters may be given: the live snapshot, and what the contestants of active pairings are made of."""
    live = live_deployment(session)
    meeting = [one for pairing in active_pairings(session) for one in (pairing.a, pairing.b)]
    return Served(
        frozenset({live.digest} if live else set()) | {one.digest for one in meeting if one.digest},
        frozenset(one.preference_model for one in meeting if one.preference_model),
    )


def _pairing(row: Sequence[Any]) -> ActivePairing:
    a, b = row[4 : 4 + CONTESTANT_WIDTH], row[4 + CONTESTANT_WIDTH : 4 + 2 * CONTESTANT_WIDTH]
    return ActivePairing(row[0], row[1], row[2], row[3], Contestant(*a), Contestant(*b))
