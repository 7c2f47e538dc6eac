"""Rows become training examples here, in `comparison_set.py` and in `prompt_set.py`, and nowhere else.

This module takes the freeze, and is where stages find the rest. `docs/explanation/data.md` says what each directory
holds.
"""

from __future__ import annotations

import hashlib
import json

from sqlalchemy import BigInteger, bindparam, func, select, text
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import ComparisonsSection
from orchestrator.data.comparison_set import build_comparison_set
from orchestrator.data.prompt_set import build_prompt_set
from orchestrator.errors import CycleError

__all__ = [
    "build_comparison_set",
    "build_prompt_set",
    "freeze",
    "freeze_digest",
    "previous_comparison_set",
]

# One statement sees one snapshot: it takes the queue rows of all comparisons committed before it began, and no
# other. A comparison in flight has a queue row that nobody sees yet; it stays and is taken by the next freeze. So
# nobody has to wait for anybody: a writer that holds its transaction open for an hour does not hold up the freeze.
# Withdrawals are taken in the same way: those committed by now hold for this freeze and all later ones.
TAKE_FRESH = text(
    """
    with taken as (
        delete from fresh_comparisons returning comparison_id as id
    ), numbered as (
        select id, id - row_number() over (order by id) as run from taken
    ), runs as (
        select min(id) as first_id, max(id) as last_id, count(*) as num from numbered group by run
    ), new_freeze as (
        insert into freezes (cycle_id, previous_id, num_fresh)
        select :cycle_id, :previous_id, coalesce(sum(num), 0) from runs
        returning id
    ), written as (
        insert into frozen_comparisons (freeze_id, first_id, last_id)
        select new_freeze.id, first_id, last_id from runs cross join new_freeze order by first_id
    ), heeded as (
        insert into frozen_withdrawals (withdrawal_id, freeze_id)
        select withdrawals.id, new_freeze.id from withdrawals cross join new_freeze
        where not exists (select from frozen_withdrawals heard where heard.withdrawal_id = withdrawals.id)
    )
    select id from new_freeze
    """
).bindparams(bindparam("cycle_id", type_=BigInteger), bindparam("previous_id", type_=BigInteger))


def freeze(session: Session, cycle_id: int) -> t.Freeze:
    """Take every comparison committed so far, once per cycle; called again it returns the same freeze.

    A comparison belongs to the first freeze that begins after its commit, and to that one only.

    Raises:
        CycleError: no such cycle, or it is not open and has no freeze.
    """
    cycle = session.get(t.Cycle, cycle_id, with_for_update=True, populate_existing=True)
    if cycle is None:
        raise CycleError(f"There is no cycle with id {cycle_id}.")
    taken = session.execute(select(t.Freeze).where(t.Freeze.cycle_id == cycle_id)).scalar_one_or_none()
    if taken is not None:
        return taken
    if cycle.state != "open":
        raise CycleError(f"Cycle {cycle.number} is {cycle.state}; only an open cycle can freeze comparisons.")
    previous_id = session.execute(select(func.max(t.Freeze.id))).scalar_one()
    freeze_id = session.execute(TAKE_FRESH, {"cycle_id": cycle_id, "previous_id": previous_id}).scalar_one()
    return session.get_one(t.Freeze, freeze_id)


def freeze_digest(frozen: t.Freeze) -> str:
    """SHA-256 (hex) that stands for what a freeze holds: another database's freeze of the same id has another."""
    facts = [frozen.id, frozen.previous_id, frozen.num_fresh, frozen.cut_off.timestamp()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def previous_comparison_set(session: Session, freeze_id: int, section: ComparisonsSection) -> t.Artifact | None:
    """The newest comparison set of an earlier freeze with the same settings: its shards can be used again."""
    settings = t.Artifact.settings
    query = (
        select(t.Artifact)
        .where(t.Artifact.kind == "comparison_set")
        .where(settings.op("-")("freeze_id").op("-")("freeze") == section.selection())
        .where(settings["freeze_id"].as_integer() < freeze_id)
        # What was erased since must not come back with a shard.
        .where(t.Artifact.digest.not_in(select(t.ErasedArtifact.digest)))
        .order_by(settings["freeze_id"].as_integer().desc(), t.Artifact.id.desc())
        .limit(1)
    )
    found = session.execute(query).scalar_one_or_none()
    if found is None:
        return None
    frozen = session.get(t.Freeze, found.settings["freeze_id"])
    return found if frozen is not None and freeze_digest(frozen) == found.settings["freeze"] else None
