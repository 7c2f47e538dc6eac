"""Elo of a cycle's snapshot from people's comparisons: the only number of a cycle that people gave."""

from __future__ import annotations

from models.runtime.results import part_to_json
from orchestrator.judging.elo import EloNumbers, elo_ratings
from orchestrator.judging.standings import games
from orchestrator.stages.context import StageContext


def measure_elo(cycle_id: int, snapshot_id: int, initial_id: int) -> EloNumbers | None:
    """Fit Elo and record the snapshot's; None where nobody compared it with another policy."""
    with StageContext(cycle_id, "measure_elo") as context:
        anchor, snapshot = context.artifact(initial_id).digest, context.artifact(snapshot_id).digest
        with context.session() as session:
            played = games(session)
        if not any(snapshot in (game.first, game.second) for game in played):
            return None
        rating = elo_ratings(played, anchor, seed=context.config.seed)[snapshot]
        met = [game for game in played if {game.first, game.second} == {anchor, snapshot}]
        scores = [game.score if game.first == snapshot else 1 - game.score for game in met]
        numbers = EloNumbers(
            elo=rating.elo,
            ci=rating.ci,
            num_comparisons=len(met),
            wins=scores.count(1.0),
            losses=scores.count(0.0),
            ties=scores.count(0.5),
        )
        context.record_evaluation("elo", snapshot_id, part_to_json(numbers))
        return numbers
