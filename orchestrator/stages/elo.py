"""Elo of cycles' snapshots from people's comparisons: the only number of a cycle that people gave.

People compare a snapshot after its cycle has ended. What they said since is measured by the next cycle, by a flow that
looks every few minutes (`flows/deciding.py`), or when somebody asks for it; the reports follow whoever measured it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, exists, func, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from db import tables as t
from models.runtime.results import part_to_json, result_from_json
from orchestrator.database import database
from orchestrator.judging.elo import EloAgainstLive, EloMeasured, EloNumbers, Game, elo_ratings
from orchestrator.judging.standings import games
from orchestrator.stages.context import StageContext
from orchestrator.stages.live import live_before
from orchestrator.store import ledger

# Any number that nothing else in the database uses as an advisory lock.
_ONE_AT_A_TIME = text("select pg_advisory_xact_lock(0x656c6f)")  # "elo"
PAUSE = timedelta(minutes=10)
"""Without a new comparison for so long people have paused, and what they said is measured."""
LONGEST_WAIT = timedelta(hours=1)
"""Where they go on and on, it is measured so often: each time some reports are written anew."""
DECIDED = ("promoted", "refused")


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
    """Record the Elo of the snapshots of earlier cycles that people compared since.

    Returns the cycles whose report has not what people said, whoever measured it.
    """
    with StageContext(cycle_id, "measure_elo") as context, context.session() as session:
        _record_all(session)
        return outdated_reports(session)


def what_people_said(*, at_once: bool) -> list[int]:
    """The same beside the cycles: where people have paused, or said something for long, or `at_once`."""
    with database() as session:
        if at_once or _is_due(session, datetime.now(UTC)):
            _record_all(session)
        return outdated_reports(session)


def outdated_reports(session: Session) -> list[int]:
    """The ended cycles whose Elo was measured after their report was last begun, oldest first.

    The newest of them shows every cycle's in its picture of the weeks, and is out of date with any of them.
    """
    measured = _newest(session, t.Evaluation.cycle_id, t.Evaluation.created_at, t.Evaluation.kind == "elo")
    reported = _newest(session, t.Stage.cycle_id, t.Stage.started_at, t.Stage.name == "write_report")
    ended = select(t.Cycle.id).where(t.Cycle.state != "open", t.Cycle.number > 0).order_by(t.Cycle.id)
    ids = [id_ for id_ in session.scalars(ended) if id_ in reported]
    if ids and measured:
        measured[ids[-1]] = max(measured.values())
    # Also a report that could not be written counts as begun: it would fail again.
    return [id_ for id_ in ids if id_ in measured and reported[id_] <= measured[id_]]


def _newest(
    session: Session,
    cycle: InstrumentedAttribute[int] | InstrumentedAttribute[int | None],
    moment: InstrumentedAttribute[datetime],
    which: ColumnElement[bool],
) -> dict[int, datetime]:
    """The newest moment of each cycle among the rows that are meant."""
    rows = session.execute(select(cycle, func.max(moment)).where(which).group_by(cycle))
    return {cycle_id: newest for cycle_id, newest in rows if cycle_id is not None}


def _is_due(session: Session, now: datetime) -> bool:
    """Whether people compared a decided snapshot since the last time, and it is time to measure what they said."""
    last = session.scalars(select(func.max(t.Evaluation.created_at)).where(t.Evaluation.kind == "elo")).one()
    begin = select(func.min(t.Cycle.ended_at)).where(t.Cycle.state.in_(DECIDED), t.Cycle.number > 0)
    since = last or session.scalars(begin).one()
    if since is None:
        return False
    of_decided = (
        exists()
        .where(t.Candidate.pair_id == t.Pair.id, t.Candidate.contestant_id.is_(None))
        .where(t.Candidate.snapshot_id.in_(select(t.Decision.snapshot_id).where(t.Decision.kind == "cycle")))
    )
    newest = session.scalars(
        select(func.max(t.Comparison.created_at))
        .join(t.Pair, t.Pair.id == t.Comparison.pair_id)
        .where(t.Comparison.created_at > since, t.Pair.purpose == "evaluation", of_decided)
        .where(t.Comparison.reason.is_distinct_from("cant_tell"))
    ).one()
    return newest is not None and (now - newest >= PAUSE or now - since >= LONGEST_WAIT)


def _record_all(session: Session) -> None:
    # Two at once would each find the same comparisons to be new.
    session.execute(_ONE_AT_A_TIME)
    judged = _ended(session)
    played = games(session) if judged else []
    for one in judged:
        record_elo(session, one, played)


def measure_elo_of(cycle_id: int) -> EloNumbers | None:
    """The Elo of one cycle's snapshot from what people said so far, recorded; None where they said nothing new."""
    with database() as session:
        session.execute(_ONE_AT_A_TIME)
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
        **vars(_against(played, snapshot, anchor, judged.seed)),
        games=num_games,
        against_live=EloAgainstLive(live=live, **vars(_against(played, snapshot, live, judged.seed)))
        if live is not None and live != anchor and _met(played, snapshot, live)
        else None,
    )
    ledger.record_evaluation(session, judged.cycle_id, "elo", judged.snapshot.id, part_to_json(numbers))
    return numbers


def _against(played: Sequence[Game], snapshot: str, anchor: str, seed: int) -> EloMeasured:
    """The snapshot's Elo with the anchor at 0, and what was said of the two directly."""
    rating = elo_ratings(played, anchor, seed=seed)[snapshot]
    scores = [game.score if game.first == snapshot else 1 - game.score for game in _met(played, snapshot, anchor)]
    return EloMeasured(
        rating.elo, rating.ci, len(scores), wins=scores.count(1.0), losses=scores.count(0.0), ties=scores.count(0.5)
    )


def _met(played: Sequence[Game], one: str, other: str) -> list[Game]:
    return [game for game in played if {game.first, game.second} == {one, other}]


def _ended(session: Session) -> list[Judged]:
    """The cycles that ended and had decided on a snapshot, oldest first; a cancelled one may have."""
    ended = select(t.Cycle).where(t.Cycle.state != "open", t.Cycle.number > 0).order_by(t.Cycle.id)
    cycles = session.scalars(ended)
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
