"""Who stands where: Elo of every contestant that raters compared, from all comparisons ever made between contestants.

A contestant is a policy or, under its own name, best-of-k, an outside model or people who write. Joint over all of
them, with the initial policy at 0. Ties are half a win each; "can't tell" says nothing and is left out, as are
comparisons that a model made, and those of raters who withdrew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from db import tables as t
from orchestrator.data.questions import ANSWERS, ASKS_FOR_THE_WORSE, score_of_a
from orchestrator.judging.elo import Game, elo_ratings
from orchestrator.store.ledger import RUN

SCORE_OF_SIDE = {"a": 1.0, "b": 0.0, "none": 0.5}
AXES = {"helpful": ("helpful",), "harmless": (ANSWERS, ASKS_FOR_THE_WORSE)}
"""The questions that measure each axis; who is more harmful has lost on the harmless one."""
RESAMPLES = 500


@dataclass(frozen=True)
class Standing:
    """One contestant's place on one axis."""

    name: str
    """Digest of a policy; of any other contestant its name."""
    title: str
    """What people read: a policy's digest in short, or the name."""
    cycle: int | None
    """Number of the cycle that trained it; None for an initial policy and for what is no plain policy."""
    anchor: bool
    elo: float
    ci: tuple[float, float]
    games: int
    won: int
    lost: int
    tied: int


@dataclass(frozen=True)
class EloTable:
    """Standings on one axis, the best first, and what has to be said about them."""

    question: str
    rows: tuple[Standing, ...]
    note: str | None


def games(session: Session, questions: Sequence[str] = (), by: str = "dialogue") -> list[Game]:
    """Every comparison of two different contestants that raters made for evaluation, oldest first.

    `by` is what an interval resamples: "dialogue" or "rater". Without `questions` all count.
    """
    a, b = aliased(t.Candidate), aliased(t.Candidate)
    policy_a, policy_b = aliased(t.Artifact), aliased(t.Artifact)
    other_a, other_b = aliased(t.Contestant), aliased(t.Contestant)
    name_a = func.coalesce(other_a.name, policy_a.digest)
    name_b = func.coalesce(other_b.name, policy_b.digest)
    unit = t.Comparison.rater_id if by == "rater" else t.Pair.dialogue_id
    query = (
        select(unit, name_a, name_b, t.Comparison.side, t.Pair.question)
        .join(t.Pair, t.Pair.id == t.Comparison.pair_id)
        .join(a, (a.pair_id == t.Pair.id) & (a.side == "a"))
        .join(b, (b.pair_id == t.Pair.id) & (b.side == "b"))
        .outerjoin(other_a, other_a.id == a.contestant_id)
        .outerjoin(other_b, other_b.id == b.contestant_id)
        .outerjoin(policy_a, policy_a.id == a.snapshot_id)
        .outerjoin(policy_b, policy_b.id == b.snapshot_id)
        .where(t.Pair.purpose == "evaluation", t.Comparison.label_kind == "human")
        .where(t.Comparison.reason.is_distinct_from("cant_tell"), name_a != name_b)
        .where(t.Comparison.rater_id.not_in(select(t.Withdrawal.rater_id)))
        .order_by(t.Comparison.id)
    )
    if questions:
        query = query.where(t.Pair.question.in_(questions))
    found = []
    for one, first, second, side, question in session.execute(query):
        score = SCORE_OF_SIDE[side]
        found.append(Game(str(one), first, second, score_of_a(score, question)))
    return found


def elo_tables(session: Session, by: str = "dialogue") -> list[EloTable]:
    """The standings on the helpful and on the harmless axis, as of now."""
    return [_table(session, axis, games(session, questions, by)) for axis, questions in AXES.items()]


def _table(session: Session, axis: str, played: list[Game]) -> EloTable:
    if not played:
        return EloTable(axis, (), "Nobody has compared two contestants yet (task: model comparison).")
    names = {name for game in played for name in (game.first, game.second)}
    initial = set(
        session.scalars(
            select(t.Artifact.digest).where(t.Artifact.kind == "initial_policy", t.Artifact.digest.in_(names))
        )
    )
    if not initial:
        return EloTable(axis, (), "No comparison is with an initial policy, so that there is no zero to count from.")
    counts = {name: sum(name in (game.first, game.second) for game in played) for name in names}
    anchor = max(sorted(initial), key=counts.__getitem__)
    joined = _joined_to(anchor, played)
    kept = [game for game in played if game.first in joined]
    ratings = elo_ratings(kept, anchor, num_resamples=RESAMPLES)
    cycles = _cycles(session, joined)
    rows = []
    for name, rating in ratings.items():
        scores = [
            game.score if game.first == name else 1 - game.score for game in kept if name in (game.first, game.second)
        ]
        won, lost = scores.count(1.0), scores.count(0.0)
        rows.append(
            Standing(
                name, name[7:19] if name.startswith("sha256:") else name, cycles.get(name), name == anchor,
                rating.elo, rating.ci, rating.games,
                won, lost, len(scores) - won - lost,
            )
        )  # fmt: skip
    rows.sort(key=lambda row: -row.elo)
    apart = len(names - joined)
    note = f"{apart} contestants were never compared with these, directly or over others; they have no place here."
    return EloTable(axis, tuple(rows), note if apart else None)


def _joined_to(anchor: str, played: Sequence[Game]) -> set[str]:
    """Everybody who is joined to the anchor by comparisons, directly or over others."""
    joined, grown = {anchor}, True
    while grown:
        grown = False
        for game in played:
            if (game.first in joined) != (game.second in joined):
                joined |= {game.first, game.second}
                grown = True
    return joined


def _cycles(session: Session, digests: set[str]) -> dict[str, int]:
    """The number of the cycle that trained each snapshot; those that a run kept on its way are of the run's cycle."""
    run_of = t.LineageEdge
    rows = session.execute(
        select(t.Artifact.digest, func.min(t.Cycle.number))
        .outerjoin(run_of, (run_of.child_id == t.Artifact.id) & (run_of.role == RUN))
        .join(t.Stage, t.Stage.artifact_id == func.coalesce(run_of.parent_id, t.Artifact.id))
        .join(t.Cycle, t.Cycle.id == t.Stage.cycle_id)
        .where(t.Stage.name == "train_policy", t.Artifact.digest.in_(digests))
        .group_by(t.Artifact.digest)
    )
    return {row[0]: row[1] for row in rows}
