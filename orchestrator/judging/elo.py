"""Elo of policies from comparisons between them: one joint maximum-likelihood fit, the initial policy at 0.

Pure functions of arrays. The model is Bradley-Terry on the Elo scale (paper, appendix B.5):
P(i beats j) = 1 / (1 + 10^(-(E_i - E_j) / 400)). Intervals weigh whole dialogues (or raters) anew, never single turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.runtime.results import IF_MEASURED

ELO_PER_NAT = 400 / np.log(10)  # 173.7: one nat of log-odds on the Elo scale
MAX_STEPS = 200
STEP_TOLERANCE = 1e-10  # nats
RESAMPLE_TOLERANCE = 1e-6  # nats, 0.0002 Elo: enough for the ends of an interval
# Smaller weights of a prior game lie beyond the interval's ends and only make the fit ill-conditioned.
LEAST_PRIOR = 1e-4


@dataclass(frozen=True)
class Game:
    """One comparison between two policies; `score` is 1 where the first won, 0 where it lost, 0.5 for a tie."""

    dialogue: str
    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Rating:
    """Elo against the anchor, its 95 % interval, and the games it rests on."""

    elo: float
    ci: tuple[float, float]
    games: int


@dataclass(frozen=True)
class EloMeasured:
    """Elo against one other policy, its 95 % interval, and how the comparisons with it came out."""

    elo: float
    ci: tuple[float, float]
    num_comparisons: int
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True)
class EloAgainstLive(EloMeasured):
    """Against the policy that was live before the snapshot, which is 0 here."""

    live: str
    """Its digest."""


@dataclass(frozen=True)
class EloNumbers(EloMeasured):
    """Elo of a cycle's snapshot against the initial policy, as recorded; the counts are of those two alone."""

    games: int | None = field(default=None, metadata=IF_MEASURED)
    """Comparisons of the snapshot with any policy; none of an Elo that an earlier version measured."""
    against_live: EloAgainstLive | None = field(default=None, metadata=IF_MEASURED)
    """There where another policy was live before, and people compared the two."""


def win_counts(games: Sequence[Game], players: Sequence[str]) -> NDArray[np.float64]:
    """Matrix [P, P] of wins of row over column; a tie is half a win for each.

    Raises:
        ValueError: a score outside [0, 1], a policy against itself, or one not among `players`.
    """
    index = {player: number for number, player in enumerate(players)}
    wins = np.zeros((len(players), len(players)))
    for game in games:
        if game.first not in index or game.second not in index:
            raise ValueError(f"{game} names a policy that is not among the players {list(players)}.")
        if game.first == game.second or not 0 <= game.score <= 1:
            raise ValueError(f"{game}: expected two different policies and a score between 0 and 1.")
        wins[index[game.first], index[game.second]] += game.score
        wins[index[game.second], index[game.first]] += 1 - game.score
    return wins


def fit_elo(
    wins: NDArray[np.float64], anchor: int = 0, prior_games: float = 1.0, tolerance: float = STEP_TOLERANCE
) -> NDArray[np.float64]:
    """Maximum-likelihood Elo [..., P] for win counts [..., P, P], with `anchor` at exactly 0.

    `prior_games` drawn games of every other player against the anchor keep the fit finite where someone won or lost
    everything; against 400 real games one of them moves an Elo of 100 by less than half a point. With 0 the fit is
    the bare maximum likelihood.

    Raises:
        ValueError: negative counts, or no finite maximum (without a prior, some group never lost to the others).

    Source: Bradley and Terry 1952; Newton's method on the concave log-likelihood (Hunter 2004, Ann. Statist. 32, 384).
    """
    wins = np.array(wins, dtype=np.float64)
    size = wins.shape[-1]
    if wins.shape[-2] != size or (wins < 0).any():
        raise ValueError(f"Expected a square matrix of non-negative win counts, found shape {wins.shape}.")
    others = [player for player in range(size) if player != anchor]
    wins[..., others, anchor] += prior_games / 2
    wins[..., anchor, others] += prior_games / 2
    games = wins + wins.swapaxes(-1, -2)
    strength = np.zeros((*wins.shape[:-2], size))  # nats
    for _ in range(MAX_STEPS):
        expected = 1 / (1 + np.exp(strength[..., None, :] - strength[..., :, None]))  # P(row beats column)
        gradient = (wins - games * expected).sum(-1)[..., others]
        curvature = games * expected * (1 - expected)
        hessian = np.eye(size) * curvature.sum(-1)[..., None, :] - curvature
        hessian = hessian[..., others, :][..., others]
        try:
            step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        except np.linalg.LinAlgError:
            break
        # Newton overshoots far from the maximum; one nat (174 Elo) a step is always safe on this concave surface.
        step = np.clip(step, -1.0, 1.0)
        strength[..., others] += step
        if np.abs(step).max(initial=0.0) < tolerance:
            return strength * ELO_PER_NAT
    raise ValueError(
        "The Elo fit has no finite maximum: some policies never lost to the rest, or never met them. "
        "Collect comparisons that join them, or set prior_games > 0."
    )


def elo_ratings(
    games: Sequence[Game],
    anchor: str,
    *,
    prior_games: float = 1.0,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Rating]:
    """Joint Elo of everyone who played, with 95 % intervals by the Bayesian bootstrap over dialogues.

    Each resample gives every dialogue a weight of its own, from Gamma(1), and each half of the prior games one from
    Gamma(prior_games / 2). Drawn with replacement in place of weighed, a clean sweep would win every resample, and a
    single rater would be drawn each time: both intervals would have no width at all. Between two players whose
    dialogues hold one game each the weights give just the Beta(wins + 1/2, losses + 1/2) posterior of the share won.

    The anchor's rating is 0 with the interval (0, 0). Deterministic for a given seed and order of games.

    Raises:
        ValueError: nobody played the anchor; Elo would have no zero.

    Source: Rubin 1981, Ann. Statist. 9, 130 (the Bayesian bootstrap).
    """
    players = [anchor, *sorted({name for game in games for name in (game.first, game.second)} - {anchor})]
    if not any(anchor in (game.first, game.second) for game in games):
        raise ValueError(f"None of the {len(games)} comparisons is against the anchor {anchor}; Elo needs some.")
    by_dialogue: dict[str, list[Game]] = {}
    for game in games:
        by_dialogue.setdefault(game.dialogue, []).append(game)
    wins = np.stack([win_counts(played, players) for played in by_dialogue.values()])  # [dialogues, P, P]
    elo = fit_elo(wins.sum(0), prior_games=prior_games)
    random = np.random.default_rng(seed)
    half = (num_resamples + 1) // 2
    weighed = np.tensordot(random.standard_gamma(1.0, (half, len(wins))), wins, axes=1)
    prior = np.maximum(random.standard_gamma(prior_games / 2, (2, half, len(players) - 1)), LEAST_PRIOR)
    # Each draw counts twice, its prior games once for either side, so that exchanging the players negates the interval.
    resampled = []
    for won, lost in (prior, prior[::-1]):
        weighed_wins = weighed.copy()
        weighed_wins[:, 1:, 0] += won
        weighed_wins[:, 0, 1:] += lost
        resampled.append(fit_elo(weighed_wins, prior_games=0, tolerance=RESAMPLE_TOLERANCE))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5], axis=0)
    played = (wins + wins.swapaxes(-1, -2)).sum((0, 2))
    return {
        player: Rating(float(elo[i]), (float(low[i]), float(high[i])), round(float(played[i])))
        for i, player in enumerate(players)
    }
