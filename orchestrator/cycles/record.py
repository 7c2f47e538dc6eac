"""Cycles: open one (or go on with the open one), count what is fresh, close it.

At most one cycle is open; the database holds that. An interrupted cycle stays open, and the next run with the same
configuration goes on with it, from the same cut-off.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import CycleConfig, parse_config, values_of
from orchestrator.database import database
from orchestrator.errors import CycleError
from orchestrator.settings import code_revision


class Fresh(NamedTuple):
    """Comparisons that no freeze has taken yet and a preference model may learn from, and how many are wanted."""

    found: int
    wanted: int

    @property
    def enough(self) -> bool:
        """Whether a cycle may begin."""
        return self.found >= self.wanted


class OtherCycle(NamedTuple):
    """An open cycle that one with another configuration has to wait for."""

    number: int
    said: str
    """Which it is, since when it is open, and in which keys it differs: a sentence without its full stop."""


def stored(config: CycleConfig) -> dict[str, Any]:
    """The configuration as it is stored on a cycle."""
    return values_of(config)


def fresh_comparisons(config: CycleConfig) -> Fresh:
    """Count what the next freeze would bring to training."""
    section = config.comparisons
    query = (
        select(func.count())
        .select_from(t.FreshComparison)
        .join(t.Comparison, t.Comparison.id == t.FreshComparison.comparison_id)
        .join(t.Pair, t.Pair.id == t.Comparison.pair_id)
        .where(t.Pair.purpose == "training")
        .where((t.Comparison.side != "none") | t.Comparison.reason.in_(section.ties))
        .where(t.Comparison.label_kind.in_(section.label_kinds))
        .where(t.Comparison.rater_id.not_in(select(t.Withdrawal.rater_id)))
    )
    if section.sources is not None:
        query = query.join(t.Dialogue, t.Dialogue.id == t.Pair.dialogue_id).where(
            t.Dialogue.source.in_(section.sources)
        )
    with database() as session:
        return Fresh(session.execute(query).scalar_one(), config.cycle.min_comparisons)


def open_cycle(config: CycleConfig, *, week_zero: bool = False) -> int:
    """Open the next cycle, or go on with the open one where its configuration is the same. Returns its id.

    `week_zero` opens cycle 0, which trains nothing and puts the initial policy before people.

    Raises:
        CycleError: a cycle with another configuration is open.
    """
    with database() as session:
        current = _open_cycle(session)
        if current is not None:
            if (other := _other_cycle(current, config)) is not None:
                raise CycleError(
                    f"{other.said}, and only one cycle can be open at a time. Run it with its own configuration to "
                    f"finish it, or give it up with `orchestrator cycle cancel {other.number}`."
                )
            return current.id
        newest = session.execute(select(func.max(t.Cycle.number))).scalar_one()
        number = 0 if week_zero and newest is None else max(1, (newest or 0) + 1)
        cycle = t.Cycle(number=number, name=config.name, config=stored(config), code_revision=code_revision())
        session.add(cycle)
        session.flush()
        return cycle.id


def open_cycle_id() -> int | None:
    """The open cycle, where there is one."""
    with database() as session:
        current = _open_cycle(session)
        return current.id if current is not None else None


def in_the_way(config: CycleConfig) -> OtherCycle | None:
    """The open cycle where it has another configuration, so that one with this can't be opened."""
    with database() as session:
        current = _open_cycle(session)
        return _other_cycle(current, config) if current is not None else None


def coming_number() -> int:
    """The number of the open cycle, or that of the next."""
    with database() as session:
        current = _open_cycle(session)
        if current is not None:
            return current.number
        return (session.execute(select(func.max(t.Cycle.number))).scalar_one() or 0) + 1


def anything_live() -> bool:
    """Whether a policy answers raters."""
    with database() as session:
        return bool(session.execute(select(exists().where(t.Deployment.ended_at.is_(None)))).scalar_one())


def cycle_number(cycle_id: int) -> int:
    """The number people know a cycle by."""
    with database() as session:
        return session.get_one(t.Cycle, cycle_id).number


def cycle_config(cycle_id: int) -> CycleConfig:
    """What a cycle was told when it was opened."""
    with database() as session:
        cycle = session.get_one(t.Cycle, cycle_id)
        return parse_config(cycle.config, f"the configuration of cycle {cycle.number}")


def close_cycle(cycle_id: int, state: str, note: str | None = None) -> None:
    """End a cycle as `promoted`, `refused`, `failed` or `cancelled`; closing it again changes nothing."""
    with database() as session:
        cycle = session.get_one(t.Cycle, cycle_id, with_for_update=True)
        if cycle.state != "open":
            return
        cycle.state = state
        cycle.note = note
        cycle.ended_at = datetime.now(UTC)


def cancel_cycle(number: int) -> None:
    """Give up an open cycle. What it froze stays frozen, and goes into the next comparison set as an earlier week.

    Raises:
        CycleError: no such cycle, or it is not open.
    """
    with database() as session:
        cycle = session.execute(select(t.Cycle).where(t.Cycle.number == number)).scalar_one_or_none()
        if cycle is None or cycle.state != "open":
            found = "does not exist" if cycle is None else f"is {cycle.state}"
            raise CycleError(f"Cycle {number} {found}; only an open cycle can be cancelled.")
        cycle.state = "cancelled"
        cycle.ended_at = datetime.now(UTC)


def _open_cycle(session: Session) -> t.Cycle | None:
    return session.execute(select(t.Cycle).where(t.Cycle.state == "open")).scalar_one_or_none()


def _other_cycle(current: t.Cycle, config: CycleConfig) -> OtherCycle | None:
    keys = ", ".join(_differences(current.config, stored(config)))
    if not keys:
        return None
    said = (
        f"Cycle {current.number} is open since {current.started_at:%Y-%m-%d %H:%M} UTC with another configuration "
        f"(they differ in {keys})"
    )
    return OtherCycle(current.number, said)


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key in sorted(one.keys() | other.keys()):
        left, right = one.get(key), other.get(key)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            keys += _differences(left, right, f"{prefix}{key}.")
        else:
            keys.append(prefix + key)
    return keys
