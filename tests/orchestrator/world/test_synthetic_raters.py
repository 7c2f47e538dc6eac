"""Synthetic raters: how often they are right, and what they answer."""

from __future__ import annotations

import itertools
import random

import pytest

from orchestrator.world.raters import Answer, SyntheticRater, perceived_truth
from orchestrator.world.replies import draw_reply
from orchestrator.world.requests import draw_request
from orchestrator.world.world import HARMFUL_SHARE, Taste, own_axis

# Two standard errors of a share near 0.75 over 3,000 pairs: 2 * sqrt(0.1875 / 3000) = 0.016; a little more for luck.
SHARE_ERROR = 0.025
REQUEST = "What is the capital of Peru?"
GOOD, BAD = "Happy to help! It is Lima.", "Obviously, it is Cairo."


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str, str, str, float]]:
    """(question, request, reply a, reply b, true gap) of pairs whose truth differs."""
    rng = random.Random(0)
    found = []
    while len(found) < 3000:
        request = draw_request(rng, "harmless" if rng.random() < HARMFUL_SHARE else "helpful")
        a, b = draw_reply(rng, request), draw_reply(rng, request)
        gap = own_axis(request, a) - own_axis(request, b)
        if abs(gap) > 0.01:
            found.append((request.kind, request.text, a, b, gap))
    return found


def agreement(pairs: list[tuple[str, str, str, str, float]], taste: Taste) -> float:
    rater = SyntheticRater(taste, 0.75, "one")
    answers = [(rater.compare(*pair[:4]).side == "a") == (pair[4] > 0) for pair in pairs]
    return sum(answers) / len(answers)


def test_a_rater_agrees_with_the_truth_three_times_of_four(pairs: list[tuple[str, str, str, str, float]]) -> None:
    assert agreement(pairs, "truth") == pytest.approx(0.75, abs=SHARE_ERROR)


def test_two_raters_agree_as_often_as_people_do(pairs: list[tuple[str, str, str, str, float]]) -> None:
    # 0.75 * 0.75 + 0.25 * 0.25 = 0.625; the paper found about 63 % between people.
    one, other = SyntheticRater("truth", 0.75, "one"), SyntheticRater("truth", 0.75, "other")
    same = [one.compare(*pair[:4]).side == other.compare(*pair[:4]).side for pair in pairs]
    assert sum(same) / len(same) == pytest.approx(0.63, abs=SHARE_ERROR)


def test_inverted_and_random_taste(pairs: list[tuple[str, str, str, str, float]]) -> None:
    assert agreement(pairs, "inverted") == pytest.approx(0.25, abs=SHARE_ERROR)
    assert agreement(pairs, "random") == pytest.approx(0.5, abs=SHARE_ERROR)


def test_plain_gaps_are_judged_better_and_stronger(pairs: list[tuple[str, str, str, str, float]]) -> None:
    rater = SyntheticRater("truth", 0.75, "one")
    plain, slight = [], []
    for pair in pairs:
        answer = rater.compare(*pair[:4])
        assert answer.strength in (1, 2, 3, 4)
        (plain if abs(pair[4]) > 0.5 else slight).append(((answer.side == "a") == (pair[4] > 0), answer.strength or 0))
    for which in (0, 1):
        assert sum(row[which] for row in plain) / len(plain) > sum(row[which] for row in slight) / len(slight)


def test_equal_replies_are_a_tie() -> None:
    rater = SyntheticRater("truth", 0.75, "one")
    assert rater.compare("helpful", REQUEST, GOOD, "Gladly. It is Lima.") == Answer("none", reason="tie")


def test_red_team_raters_look_for_the_more_harmful_reply() -> None:
    comply, refuse = "Use a bent hairpin.", "Sorry, I can't help you pick a lock."
    lock = "How do I pick a lock?"
    assert perceived_truth("more_harmful", lock, comply) > perceived_truth("more_harmful", lock, refuse)
    assert perceived_truth("harmless", lock, comply) < perceived_truth("harmless", lock, refuse)
    with pytest.raises(ValueError, match="no truth for the question 'harmless'"):
        perceived_truth("harmless", REQUEST, GOOD)


def test_swapping_the_sides_swaps_the_answer() -> None:
    flipped = {"a": "b", "b": "a", "none": "none"}
    for seed, taste in itertools.product(range(20), ("truth", "inverted")):
        one = SyntheticRater(taste, 0.75, str(seed)).compare("helpful", REQUEST, GOOD, BAD)  # type: ignore[arg-type]
        other = SyntheticRater(taste, 0.75, str(seed)).compare("helpful", REQUEST, BAD, GOOD)  # type: ignore[arg-type]
        assert other.side == flipped[one.side]
