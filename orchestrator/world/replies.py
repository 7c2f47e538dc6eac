"""Replies of every quality, as people wrote them before anyone compared: what the initial policy is pretrained on.

A reply has a stance (answer, wrong answer, refusal, ...) and a manner (courteous, plain, rude, padded). The mixture
below makes the initial policy mediocre in known proportions, so that RLHF has something to choose from.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from orchestrator.world.lexicon import EXAMPLES, HARMFUL_TASKS, ORDINARY_TASKS, RELATIONS, Task
from orchestrator.world.requests import LARGEST_NUMBER, Request
from orchestrator.world.truth import task_of

Stance = Literal["answer", "wrong", "evade", "refuse", "refuse_topic", "refuse_well"]
Manner = Literal["courteous", "plain", "rude", "padded"]

COURTEOUS_OPENINGS = ("Happy to help!", "Of course!", "Gladly.", "With pleasure.", "Good question!")
COURTEOUS_CLOSINGS = ("I hope that helps.",)
RUDE_OPENINGS = ("Obviously,", "What a silly question.", "Don't be lazy.", "Even a child knows this.")
EVASIONS = ("That is hard to say.", "It depends.", "There are many opinions.", "Who can tell?")
PADDING = (
    "Well, before I begin, let me say that many people have asked me this.",
    "There is much to be said here, and one could talk all day long.",
    "I have thought about this for a long time, as have many others.",
)
PADDED_CLOSINGS = (
    "There would be more to add on another day.",
    "And so on and so forth, as people say.",
)


@dataclass(frozen=True)
class Mixture:
    """Proportions of stances and manners in the pretraining text, for ordinary and for harmful requests."""

    ordinary: dict[Stance, float]
    harmful: dict[Stance, float]
    manners: dict[Manner, float]


MIXTURE = Mixture(
    ordinary={"answer": 0.72, "wrong": 0.08, "evade": 0.05, "refuse": 0.04, "refuse_topic": 0.11},
    harmful={"answer": 0.28, "wrong": 0.02, "evade": 0.06, "refuse": 0.12, "refuse_topic": 0.20, "refuse_well": 0.32},
    manners={"courteous": 0.42, "plain": 0.35, "rude": 0.13, "padded": 0.10},
)


def draw_reply(rng: random.Random, request: Request, mixture: Mixture = MIXTURE) -> str:
    """One reply from the mixture."""
    stances = mixture.harmful if request.kind == "harmless" else mixture.ordinary
    stance = rng.choices(list(stances), list(stances.values()))[0]
    manner = rng.choices(list(mixture.manners), list(mixture.manners.values()))[0]
    return write_reply(rng, request, stance, manner)


def write_reply(rng: random.Random, request: Request, stance: Stance, manner: Manner) -> str:
    """A reply to the request of the given stance and manner; `refuse_well` needs a harmful request."""
    if stance == "evade":
        return _mannered(rng, rng.choice(EVASIONS), manner)
    if stance.startswith("refuse"):
        return _mannered_refusal(rng, _refusal(request, stance), manner)
    return _mannered(rng, _statement(rng, request, correct=stance == "answer"), manner)


def _mannered(rng: random.Random, core: str, manner: Manner) -> str:
    if manner == "courteous":
        if rng.random() < 0.25:
            return f"{core} {rng.choice(COURTEOUS_CLOSINGS)}"
        return f"{rng.choice(COURTEOUS_OPENINGS)} {core}"
    if manner == "rude":
        return f"{rng.choice(RUDE_OPENINGS)} {core}"
    if manner == "padded":
        return f"{rng.choice(PADDING)} {core} {rng.choice(PADDED_CLOSINGS)}"
    return core


def _mannered_refusal(rng: random.Random, core: str, manner: Manner) -> str:
    if manner == "courteous":
        return f"Sorry, {core}"
    if manner == "rude":
        return f"Shame on you, {core}"
    core = core[0].upper() + core[1:]
    if manner == "padded":
        return f"{rng.choice(PADDING)} {core} {rng.choice(PADDED_CLOSINGS)}"
    return core


def _refusal(request: Request, stance: Stance) -> str:
    if stance == "refuse":
        return "I can't help with that."
    topic = request.topic if request.family in ("how", "example") else f"find {request.topic}"
    if stance == "refuse_topic":
        return f"I can't help you {topic}."
    return f"I can't help you {topic}. {task_of(request).alternative}."


def _statement(rng: random.Random, request: Request, *, correct: bool) -> str:
    """The bare answer, right or wrong, in one of a few wordings."""
    args = request.arguments
    if request.family == "fact":
        table = RELATIONS[args[0]][1]
        answer = table[args[1]] if correct else rng.choice(sorted(set(table.values()) - {table[args[1]]}))
        return rng.choice((f"It is {answer}.", f"{_capitalised(request.topic)} is {answer}."))
    if request.family == "double":
        number = int(args[0]) if correct else rng.choice([n for n in range(1, LARGEST_NUMBER + 1) if str(n) != args[0]])
        return rng.choice((f"It is {2 * number}.", f"Twice {args[0]} is {2 * number}."))
    if request.family == "example":
        kind = args[0] if correct else rng.choice([kind for kind in EXAMPLES if kind != args[0]])
        name = rng.choice(EXAMPLES[kind])
        return rng.choice((f"{_capitalised(name)}.", f"One is {name}."))
    task = task_of(request)
    return f"{(task if correct else _other(rng, task)).tip}."


def _other(rng: random.Random, task: Task) -> Task:
    tasks = HARMFUL_TASKS if task.harmful else ORDINARY_TASKS
    return rng.choice([other for other in tasks if other != task])


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
