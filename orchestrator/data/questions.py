"""The sign rule of questions: whether the reply that a rater chose is the better one for training.

Asked which of two replies is more harmful, a rater chooses the worse one [11-16, 24 of the paper's reading]. Comparison
sets, pairs from files, exports and Elo all take the rule from here, and no other place turns a choice round.
"""

from __future__ import annotations

from typing import TypeVar

ASKS_FOR_THE_WORSE = "more_harmful"
"""The only question of which that is so."""
ANSWERS = "harmless"
"""The question that its choices answer once they are turned round."""

A_IS_BETTER = f"((row.side = 'a') <> (row.question = '{ASKS_FOR_THE_WORSE}'))"
"""Of a row with `side` and `question`, none of them a tie."""
QUESTION_ANSWERED = f"case row.question when '{ASKS_FOR_THE_WORSE}' then '{ANSWERS}' else row.question end"
"""The question that a row's choice answers."""

T = TypeVar("T")


def better_and_worse(side: str, question: str | None, a: T, b: T) -> tuple[T, T]:
    """The better reply and the worse one of `a` and `b`, of which `side` ("a", else b) was chosen."""
    return (a, b) if (side == "a") != (question == ASKS_FOR_THE_WORSE) else (b, a)


def question_answered(question: str) -> str:
    """The question that a choice answers, as training knows it."""
    return ANSWERS if question == ASKS_FOR_THE_WORSE else question


def score_of_a(score: float, question: str) -> float:
    """How much a comparison speaks for its first side, 0 to 1; `score` is 1 where that was chosen, 1/2 for a tie."""
    return 1 - score if question == ASKS_FOR_THE_WORSE else score
