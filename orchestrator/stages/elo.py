"""Elo of cycles' snapshots from people's comparisons: the only number of a cycle that people gave.

People compare a snapshot after its cycle has ended, so the next cycle measures what they said since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.runtime.results import part_to_json, result_from_json
from orchestrator.database import database
from orchestrator.judging.elo import EloAgainstLive, EloNumbers, Game, elo_ratings
from orchestrator.judging.standings import games
from orchestrator.stages.context import StageContext
from orchestrator.stages.live import live_before
from orchestrator.store import ledger


@dataclass(frozen=True)
class Judged:
    """A cycle that decided on a snapshot: the policies that people compare after it."""

    cycle_id: int
    seed: int
    snapshot: t.Artifact
    initial: t.Artifact
    live: t.Artifact | None
    """What was live before the decision."""


def measure_elo(cycle_id: int) -> list[int]:
    """Record the Elo of the snapshots of earlier cycles that people compared since. Returns those cycles."""
    with StageContext(cycle_id, "measure_elo") as context, context.session() as session:
        played = games(session)
        return [
            judged.cycle_id
            for judged in _judged_before(session, cycle_id)
            if record_elo(session, judged, played) is not None
        ]


def measure_elo_of(cycle_id: int) -> EloNumbers | None:
    """The Elo of one cycle's snapshot from what people said so far, recorded; None where they said nothing new."""
    with database() as session:
        judged = _judged(session, session.get_one(t.Cycle, cycle_id))
        return record_elo(session, judged, games(session)) if judged is not None else None


def record_elo(session: Session, judged: Judged, played: Sequence[Game]) -> EloNumbers | None:
    """Fit Elo and record the snapshot's; None where nobody compared it with another policy since the last time.

    The fit is joint over all policies that people compared.
    """
    snapshot, anchor = judged.snapshot.digest, judged.initial.digest
    num_games = sum(snapshot in (game.first, game.second) for game in played)
    if num_games in (0, _games_at_last(session, judged)):
        return None
    if not any(anchor in (game.first, game.second) for game in played):
        return None
    live = judged.live.digest if judged.live is not None else None
    numbers = EloNumbers(
        **_against(played, snapshot, anchor, judged.seed),
        games=num_games,
        against_live=EloAgainstLive(live=live, **_against(played, snapshot, live, judged.seed))
        if live is not None and live != anchor and _met(played, snapshot, live)
        else None,
    )
    ledger.record_evaluation(session, judged.cycle_id, "elo", judged.snapshot.id, part_to_json(numbers))
    return numbers


class Against(TypedDict):
    """The fields of `EloMeasured`."""

    elo: float
    ci: tuple[float, float]
    num_comparisons: int
    wins: int
    losses: int
    ties: int


def _against(played: Sequence[Game], snapshot: str, anchor: str, seed: int) -> Against:
    """The snapshot's Elo with the anchor at 0, and what was said of the two directly."""
    rating = elo_ratings(played, anchor, seed=seed)[snapshot]
    scores = [game.score if game.first == snapshot else 1 - game.score for game in _met(played, snapshot, anchor)]
    return {
        "elo": rating.elo,
        "ci": rating.ci,
        "num_comparisons": len(scores),
        "wins": scores.count(1.0),
        "losses": scores.count(0.0),
        "ties": scores.count(0.5),
    }


def _met(played: Sequence[Game], one: str, other: str) -> list[Game]:
    return [game for game in played if {game.first, game.second} == {one, other}]


def _judged_before(session: Session, cycle_id: int) -> list[Judged]:
    """The cycles before one that decided on a snapshot, oldest first."""
    cycles = session.scalars(select(t.Cycle).where(t.Cycle.id < cycle_id, t.Cycle.number > 0).order_by(t.Cycle.id))
    found = [_judged(session, cycle) for cycle in cycles]
    return [judged for judged in found if judged is not None]


def _judged(session: Session, cycle: t.Cycle) -> Judged | None:
    """The snapshot that a cycle decided on, with the initial policy it began from and what was live before."""
    initial = t.LineageEdge
    row = session.execute(
        select(t.Decision.snapshot_id, initial.parent_id)
        .join(initial, (initial.child_id == t.Decision.snapshot_id) & (initial.role == "initial"))
        .where(t.Decision.cycle_id == cycle.id)
        .order_by(t.Decision.id.desc())
        .limit(1)
    ).first()
    if row is None:
        return None
    live_id = live_before(session, cycle.id)
    artifacts = [session.get_one(t.Artifact, id_) for id_ in (*row, live_id) if id_ is not None]
    live = artifacts[2] if live_id is not None else None
    return Judged(cycle.id, cycle.config.get("seed", 0), artifacts[0], artifacts[1], live)


def _games_at_last(session: Session, judged: Judged) -> int | None:
    """How many comparisons of the snapshot the Elo rests on that was recorded last; None where none was."""
    last = newest_elo(session, judged.snapshot.id, judged.cycle_id)
    return last.games if last is not None else None


def newest_elo(session: Session, policy_id: int, cycle_id: int | None = None) -> EloNumbers | None:
    """What people's comparisons said of a policy when they were last asked; where given, for the report of a cycle."""
    query = select(t.Evaluation).where(t.Evaluation.kind == "elo", t.Evaluation.subject_id == policy_id)
    if cycle_id is not None:
        query = query.where(t.Evaluation.cycle_id == cycle_id)
    found = session.scalars(query.order_by(t.Evaluation.id.desc()).limit(1)).first()
    if found is None:
        return None
    return result_from_json(EloNumbers, found.numbers, where=f"the numbers of evaluation {found.id}")
