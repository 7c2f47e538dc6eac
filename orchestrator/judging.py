"""Elo of snapshots from people's comparisons between them: the only number here that people gave.

Joint over every model comparison ever made, with the initial policy at 0. Ties are half a win each; "can't tell" says
nothing and is left out. Comparisons that a model made are left out too.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from db import tables as t
from orchestrator.elo import Game, elo_ratings
from orchestrator.stage import StageContext

SCORE_OF_SIDE = {"a": 1.0, "b": 0.0, "none": 0.5}


def measure_elo(cycle_id: int, snapshot_id: int, initial_id: int) -> dict[str, Any] | None:
    """Fit Elo and record the snapshot's; None where nobody compared it with another policy.

    Returns {"elo", "ci", "num_comparisons", "wins", "losses", "ties"}; the counts are those against the initial policy.
    """
    with StageContext(cycle_id, "measure_elo") as context:
        anchor, snapshot = context.artifact(initial_id).digest, context.artifact(snapshot_id).digest
        with context.session() as session:
            played = games(session)
        if not any(snapshot in (game.first, game.second) for game in played):
            return None
        rating = elo_ratings(played, anchor, seed=context.config.seed)[snapshot]
        met = [game for game in played if {game.first, game.second} == {anchor, snapshot}]
        scores = [game.score if game.first == snapshot else 1 - game.score for game in met]
        numbers = {
            "elo": rating.elo,
            "ci": list(rating.ci),
            "num_comparisons": len(met),
            "wins": scores.count(1.0),
            "losses": scores.count(0.0),
            "ties": scores.count(0.5),
        }
        context.record_evaluation("elo", snapshot_id, numbers)
        return numbers


def games(session: Session) -> list[Game]:
    """Every comparison of two different snapshots that raters made for evaluation, oldest first."""
    a, b = aliased(t.Candidate), aliased(t.Candidate)
    policy_a, policy_b = aliased(t.Artifact), aliased(t.Artifact)
    rows = session.execute(
        select(t.Pair.dialogue_id, policy_a.digest, policy_b.digest, t.Comparison.side)
        .join(t.Pair, t.Pair.id == t.Comparison.pair_id)
        .join(a, (a.pair_id == t.Pair.id) & (a.side == "a"))
        .join(b, (b.pair_id == t.Pair.id) & (b.side == "b"))
        .join(policy_a, policy_a.id == a.snapshot_id)
        .join(policy_b, policy_b.id == b.snapshot_id)
        .where(t.Pair.purpose == "evaluation", t.Comparison.label_kind == "human")
        .where(t.Comparison.reason.is_distinct_from("cant_tell"), policy_a.digest != policy_b.digest)
        .order_by(t.Comparison.id)
    )
    return [Game(str(dialogue), one, other, SCORE_OF_SIDE[side]) for dialogue, one, other, side in rows]
