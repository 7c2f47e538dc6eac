"""Elo against hand-worked values and against the published strengths of real human judgments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.judging.elo import Game, elo_ratings, fit_elo, win_counts

EXACT = 1e-6  # Elo points: the fit's own tolerance
MONTE_CARLO_ELO = 12.0  # standard error of the 2.5 % quantile of 20,000 draws is about 3
PUBLISHED_DIGITS = 0.06  # the reference values are rounded to one decimal


def test_two_players_give_the_log_odds_of_their_wins() -> None:
    # 30 wins to 10: odds 3, 400 * log10(3) = 190.848.
    elo = fit_elo(np.array([[0.0, 10.0], [30.0, 0.0]]), prior_games=0)
    assert elo == pytest.approx([0.0, 190.8485], abs=1e-3)


def test_joint_fit_uses_the_way_round_through_a_third_player() -> None:
    # A meets B (1:3) and B meets C (1:3), A never meets C: odds multiply, C is at 2 * 190.8485.
    wins = np.array([[0.0, 1.0, 0.0], [3.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    assert fit_elo(wins, prior_games=0) == pytest.approx([0.0, 190.8485, 381.6970], abs=1e-3)


def test_the_anchor_is_zero_whoever_it_is() -> None:
    wins = np.array([[0.0, 10.0], [30.0, 0.0]])
    assert fit_elo(wins, anchor=1, prior_games=0) == pytest.approx([-190.8485, 0.0], abs=1e-3)


def test_a_tie_is_half_a_win_for_each() -> None:
    games = [Game("d", "a", "b", 0.5), Game("d", "b", "a", 1.0)]
    assert win_counts(games, ["a", "b"]).tolist() == [[0.0, 0.5], [1.5, 0.0]]


def test_the_prior_keeps_a_clean_sweep_finite() -> None:
    # 10 wins of 10 and one drawn game: 10.5 to 0.5, 400 * log10(21) = 528.888.
    wins = np.array([[0.0, 0.0], [10.0, 0.0]])
    assert fit_elo(wins, prior_games=1)[1] == pytest.approx(528.888, abs=1e-3)
    with pytest.raises(ValueError, match="no finite maximum"):
        fit_elo(wins, prior_games=0)


def test_swapping_the_sides_negates_the_rating() -> None:
    games = [Game(f"d{i}", "initial", "new", 1.0 if i % 3 == 0 else 0.0) for i in range(60)]
    swapped = [Game(game.dialogue, game.first, game.second, 1 - game.score) for game in games]
    one, other = elo_ratings(games, "initial")["new"], elo_ratings(swapped, "initial")["new"]
    assert one.elo == pytest.approx(-other.elo, abs=EXACT)
    assert one.ci == pytest.approx((-other.ci[1], -other.ci[0]), abs=EXACT)


def test_the_interval_is_of_dialogues_and_not_of_turns() -> None:
    # The same 400 games (60 % won): independent, and in 40 dialogues of ten alike turns.
    def games(turns: int) -> list[Game]:
        return [Game(f"d{i // turns}", "new", "initial", float((i // turns) % 5 < 3)) for i in range(400)]

    def width(rating_games: list[Game]) -> float:
        low, high = elo_ratings(rating_games, "initial")["new"].ci
        return high - low

    # Win rate 0.6 +- 1.96 * sqrt(0.24 / n): n = 400 gives +-0.048, or 70 Elo wide; n = 40 sqrt(10) times that.
    assert width(games(1)) == pytest.approx(70, rel=0.15)
    assert width(games(10)) / width(games(1)) == pytest.approx(10**0.5, rel=0.2)


def test_the_interval_covers_the_truth_about_95_times_of_100() -> None:
    rng = np.random.default_rng(0)
    true_elo = 80.0
    chance = 1 / (1 + 10 ** (-true_elo / 400))
    covered = 0
    for trial in range(200):
        results = rng.random(200) < chance
        games = [Game(f"d{i}", "new", "initial", float(won)) for i, won in enumerate(results)]
        low, high = elo_ratings(games, "initial", num_resamples=200, seed=trial)["new"].ci
        covered += low <= true_elo <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_clean_sweep_has_the_interval_of_the_beta_posterior() -> None:
    # 30 wins of 30: Beta(30.5, 0.5) for the share won. Its 2.5 % quantile q solves I_q(30.5, 0.5) = 0.025: q = 0.9203,
    # and 400 * log10(0.9203 / 0.0797) = 425. Drawn with replacement, every resample would be 30 of 30.
    games = [Game(f"d{i}", "new", "initial", 1.0) for i in range(30)]
    low, high = elo_ratings(games, "initial", num_resamples=20_000)["new"].ci
    assert low == pytest.approx(425, abs=MONTE_CARLO_ELO)
    assert high > 1000


def test_one_dialogue_or_one_rater_says_little_however_many_turns() -> None:
    low, high = elo_ratings([Game("only", "new", "initial", 1.0)] * 50, "initial")["new"].ci
    assert low < 300 < 1000 < high  # drawn with replacement it would be the same dialogue each time: no width


def test_elo_needs_games_against_the_anchor() -> None:
    with pytest.raises(ValueError, match="against the anchor"):
        elo_ratings([Game("d", "a", "b", 1.0)], "initial")


def test_mt_bench_strengths_are_the_published_ones(data_dir: Path) -> None:
    """Reference: README of the data folder; ties half a win each, geometric mean 0, train and dev together."""
    games = []
    for part in ("train", "dev"):
        for number, line in enumerate((data_dir / "mt_bench_human" / f"human_judgments_{part}.jsonl").open()):
            vote = json.loads(line)
            score = {"model_a": 1.0, "model_b": 0.0}.get(vote["winner"], 0.5)
            games.append(Game(f"{part}/{number}", vote["model_a"], vote["model_b"], score))
    players = sorted({game.first for game in games} | {game.second for game in games})
    elo = fit_elo(win_counts(games, players), prior_games=0)
    centred = dict(zip(players, elo - elo.mean(), strict=True))
    assert centred == pytest.approx(
        {
            "gpt-4": 171.5,
            "claude-v1": 110.6,
            "gpt-3.5-turbo": 101.4,
            "vicuna-13b-v1.2": -5.3,
            "alpaca-13b": -149.6,
            "llama-13b": -228.7,
        },
        abs=PUBLISHED_DIGITS,
    )
