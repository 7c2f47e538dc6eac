"""Cycles: open one (or go on with the open one), count what is fresh, close it.

At most one cycle is open; the database holds that. An interrupted cycle stays open, and the next run with the same
configuration goes on with it, from the same cut-off.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import CycleConfig, parse_config, values_of
from orchestrator.database import database
from orchestrator.errors import CycleBlocked, CycleCancelled, CycleError
from orchestrator.settings import code_revision, flow_run_id
from orchestrator.store.acts import Actor, record_act

CANCEL_ACT = "cancel_cycle"
ABOUT_TRIGGERS = frozenset({"cycle.second_trigger", "cycle.abandon_after_hours"})
"""Keys that say what a run does about other runs: with other values it is the same cycle."""


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

    `week_zero` opens cycle 0, which trains nothing and puts the initial policy before people. The Prefect run that
    takes the cycle up, where this is one, is written down with it.

    Raises:
        CycleBlocked: a cycle with another configuration is open.
    """
    with database() as session:
        current = open_cycle_of(session)
        if current is not None:
            if (other := _other_cycle(current, config)) is not None:
                raise _blocked(other)
            _take_up(session, current.id)
            return current.id
        newest = session.execute(select(func.max(t.Cycle.number))).scalar_one()
        number = 0 if week_zero and newest is None else max(1, (newest or 0) + 1)
        cycle = t.Cycle(number=number, name=config.name, config=stored(config), code_revision=code_revision())
        session.add(cycle)
        session.flush()
        _take_up(session, cycle.id)
        return cycle.id


def way_out(number: int) -> str:
    """How a person gives a cycle up, in a terminal and in the Prefect UI."""
    return f"give it up with `orchestrator cycle cancel {number}` (in the Prefect UI: `cancel-cycle`, cycle {number})"


def open_cycle_row(session: Session, cycle_id: int) -> t.Cycle:
    """The row of a cycle that is open, and stays so until the caller's transaction ends.

    Whoever writes something of a cycle asks for it first: then either what they write is there before the cycle is
    cancelled, or it is not written. Several may hold it at once; `cancel_cycle` waits for them.

    Raises:
        CycleCancelled: it is not open.
    """
    # `populate_existing`: a row that the session has read before would be answered from memory.
    cycle = session.execute(
        select(t.Cycle)
        .where(t.Cycle.id == cycle_id)
        .with_for_update(read=True)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    if cycle is None:
        raise CycleError(f"There is no cycle with id {cycle_id}.")
    if cycle.state != "open":
        raise CycleCancelled(_ended_line(cycle))
    return cycle


def check_open(cycle_id: int) -> None:
    """Refuse to go on with a cycle that has ended.

    Raises:
        CycleCancelled: it is not open.
    """
    with database() as session:
        cycle = session.get_one(t.Cycle, cycle_id)
        if cycle.state != "open":
            raise CycleCancelled(_ended_line(cycle))


def check_way_free(config: CycleConfig) -> None:
    """Refuse a configuration in whose way an open cycle stands.

    Raises:
        CycleBlocked: a cycle with another configuration is open.
    """
    if (other := in_the_way(config)) is not None:
        raise _blocked(other)


def open_cycle_id() -> int | None:
    """The open cycle, where there is one."""
    with database() as session:
        current = open_cycle_of(session)
        return current.id if current is not None else None


def in_the_way(config: CycleConfig) -> OtherCycle | None:
    """The open cycle where it has another configuration, so that one with this can't be opened."""
    with database() as session:
        current = open_cycle_of(session)
        return _other_cycle(current, config) if current is not None else None


def coming_number() -> int:
    """The number of the open cycle, or that of the next."""
    with database() as session:
        current = open_cycle_of(session)
        if current is not None:
            return current.number
        return (session.execute(select(func.max(t.Cycle.number))).scalar_one() or 0) + 1


def anything_live() -> bool:
    """Whether a policy answers raters."""
    with database() as session:
        return bool(session.execute(select(exists().where(t.Deployment.ended_at.is_(None)))).scalar_one())


def cycle_id_of(number: int) -> int:
    """The id of the cycle with this number.

    Raises:
        CycleError: there is none.
    """
    with database() as session:
        found = session.scalars(select(t.Cycle.id).where(t.Cycle.number == number)).one_or_none()
    if found is None:
        raise CycleError(f"There is no cycle {number}. `orchestrator cycle list` shows those there are.")
    return found


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
    """End a cycle as `promoted`, `refused` or `failed`; ending it in the same way again changes nothing.

    Raises:
        CycleCancelled: it was cancelled meanwhile.
    """
    with database() as session:
        cycle = session.get_one(t.Cycle, cycle_id, with_for_update=True)
        if cycle.state == "cancelled":
            raise CycleCancelled(_ended_line(cycle))
        if cycle.state != "open":
            return
        cycle.state = state
        cycle.note = note
        cycle.ended_at = datetime.now(UTC)


def cancel_cycle(number: int, actor: Actor, note: str | None = None) -> int:
    """Give up an open cycle: from now on nothing of it is written. Returns its id.

    What it froze stays frozen, and goes into the next comparison set as an earlier week. Stages that are at work are
    closed here, since they may not write that they ended; `cancelling.py` ends their processes.

    Raises:
        CycleError: no such cycle, or it is not open.
    """
    with database() as session:
        cycle = session.execute(select(t.Cycle).where(t.Cycle.number == number).with_for_update()).scalar_one_or_none()
        if cycle is None or cycle.state != "open":
            found = "does not exist" if cycle is None else f"is {cycle.state}"
            raise CycleError(f"Cycle {number} {found}; only an open cycle can be cancelled.")
        now = datetime.now(UTC)
        cycle.state, cycle.ended_at = "cancelled", now
        by = "Given up by itself" if actor.via == "program" else f"Cancelled by {actor.said}"
        cycle.note = f"{by}: {note}" if note else f"{by}."
        running = update(t.Stage).where(t.Stage.cycle_id == cycle.id, t.Stage.state == "running")
        session.execute(running.values(state="failed", error=f"{CycleCancelled.__name__}: {cycle.note}", ended_at=now))
        record_act(session, actor, CANCEL_ACT, f"cycle {number}", reason=note)
        return cycle.id


def open_cycle_of(session: Session) -> t.Cycle | None:
    """The row of the open cycle, where there is one."""
    return session.execute(select(t.Cycle).where(t.Cycle.state == "open")).scalar_one_or_none()


def _blocked(other: OtherCycle) -> CycleBlocked:
    return CycleBlocked(
        f"{other.said}, and only one cycle can be open at a time. Run it with its own configuration to finish it, or "
        f"{way_out(other.number)}."
    )


def _take_up(session: Session, cycle_id: int) -> None:
    run_id = flow_run_id()
    if run_id is not None:
        row = insert(t.CycleRun).values(cycle_id=cycle_id, flow_run_id=run_id)
        session.execute(row.on_conflict_do_nothing())


def _ended_line(cycle: t.Cycle) -> str:
    return f"Cycle {cycle.number} is {cycle.state}, and nothing of it goes on. {cycle.note or ''}".strip()


def _other_cycle(current: t.Cycle, config: CycleConfig) -> OtherCycle | None:
    keys = ", ".join(_differences(current.config, stored(config)))
    if not keys:
        return None
    said = (
        f"Cycle {current.number} is open since {current.started_at:%Y-%m-%d %H:%M} UTC with another configuration "
        f"(they differ in {keys})"
    )
    return OtherCycle(current.number, said)


def same_configuration(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether two stored configurations train the same; what they say about other runs may differ."""
    return not _differences(one, other)


def _differences(one: Mapping[str, object], other: Mapping[str, object], prefix: str = "") -> list[str]:
    keys = []
    for key in sorted(one.keys() | other.keys()):
        left, right = one.get(key), other.get(key)
        if left == right or prefix + key in ABOUT_TRIGGERS:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            keys += _differences(left, right, f"{prefix}{key}.")
        else:
            keys.append(prefix + key)
    return keys
