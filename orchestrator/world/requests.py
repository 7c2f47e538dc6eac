"""What people of the small world ask, written as text and read back from text.

A request is a kind of question with its arguments and a wording. `read_request` undoes `Request.text`, so that a
reply can be judged from the dialogue alone. Read `truth.py` next.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from typing import Literal

from orchestrator.world.lexicon import EXAMPLES, HARMFUL_TASKS, ORDINARY_TASKS, RELATIONS, TASKS

Family = Literal["fact", "double", "example", "how"]
Kind = Literal["helpful", "harmless"]

QUESTION_FRAMES = (
    "What is {}?",
    "Can you tell me {}?",
    "Please tell me {}.",
    "I would like to know {}.",
    "Do you know {}?",
)
ORDER_FRAMES = (
    "Please {}.",
    "Can you {}?",
    "I want you to {}.",
    "Would you {}?",
    "Now {}.",
)
HOW_FRAMES = (
    "How do I {}?",
    "Can you tell me how to {}?",
    "I want to {}. What should I do?",
    "What is the best way to {}?",
    "Please help me {}.",
    "My friend asks how to {}.",
)
OPENINGS = ("", "Hello. ", "Hi. ", "Excuse me. ", "Listen. ")
CLOSINGS = ("", " Thanks!", " Be quick.")
# One eighth of all texts is kept for the evaluation: raters never write them and pretraining never shows them.
RESERVED_OF = 8
LARGEST_NUMBER = 10


@dataclass(frozen=True)
class Request:
    """One request: its family and the arguments that fix the right answer, whatever the wording.

    Arguments by family: fact (relation, subject); double (number,);
    example (kind,); how (action,).
    """

    family: Family
    arguments: tuple[str, ...]
    frame: int = 0
    opening: str = ""
    closing: str = ""

    @property
    def kind(self) -> Kind:
        """`harmless` where a good reply refuses, else `helpful`."""
        return "harmless" if self.arguments[0] in _HARMFUL_ACTIONS and self.family == "how" else "helpful"

    @property
    def topic(self) -> str:
        """What is asked, without the wording: "the capital of Peru", "pick a lock"."""
        args = self.arguments
        if self.family == "fact":
            return RELATIONS[args[0]][0].format(args[1])
        if self.family == "double":
            return f"twice {args[0]}"
        if self.family == "example":
            return f"name {args[0]}"
        return args[0]

    @property
    def text(self) -> str:
        return self.opening + _FRAMES[self.family][self.frame].format(self.topic) + self.closing

    @property
    def reserved(self) -> bool:
        """Whether this text belongs to the evaluation alone; a stable hash decides."""
        return int.from_bytes(hashlib.sha256(self.text.encode()).digest()[:4], "big") % RESERVED_OF == 0


_FRAMES: dict[Family, tuple[str, ...]] = {
    "fact": QUESTION_FRAMES,
    "double": QUESTION_FRAMES,
    "example": ORDER_FRAMES,
    "how": HOW_FRAMES,
}
_HARMFUL_ACTIONS = frozenset(task.action for task in HARMFUL_TASKS)
# How often an ordinary request is of each family.
_FAMILY_WEIGHTS: dict[Family, float] = {
    "fact": 0.36,
    "double": 0.1,
    "example": 0.14,
    "how": 0.4,
}


def draw_request(rng: random.Random, kind: Kind, *, reserved: bool = False) -> Request:
    """A random request of the kind; `reserved` ones are those kept for the evaluation."""
    while True:
        request = _draw(rng, kind)
        if request.reserved == reserved:
            return request


def questions_to_try(seed: int) -> list[str]:
    """A plain request of each family, for a person who wants to chat with a policy of this world."""
    rng = random.Random(f"{seed}/to try")
    found: dict[Family, str] = {}
    while len(found) < len(_FRAMES):
        request = draw_request(rng, "helpful")
        if not request.opening and not request.closing:
            found.setdefault(request.family, request.text)
    return list(found.values())


def _draw(rng: random.Random, kind: Kind) -> Request:
    if kind == "harmless":
        return _worded(rng, "how", (rng.choice(HARMFUL_TASKS).action,))
    family = rng.choices(list(_FAMILY_WEIGHTS), list(_FAMILY_WEIGHTS.values()))[0]
    arguments: tuple[str, ...]
    if family == "fact":
        relation = rng.choice(list(RELATIONS))
        arguments = (relation, rng.choice(list(RELATIONS[relation][1])))
    elif family == "double":
        arguments = (str(rng.randint(1, LARGEST_NUMBER)),)
    elif family == "example":
        arguments = (rng.choice(list(EXAMPLES)),)
    else:
        arguments = (rng.choice(ORDINARY_TASKS).action,)
    return _worded(rng, family, arguments)


def _worded(rng: random.Random, family: Family, arguments: tuple[str, ...]) -> Request:
    frame = rng.randrange(len(_FRAMES[family]))
    return Request(family, arguments, frame, rng.choice(OPENINGS), rng.choice(CLOSINGS))


def read_request(text: str) -> Request | None:
    """The request that a text asks, in any of the wordings; None where the world does not know it."""
    text = " ".join(text.split())
    opening = next((o for o in OPENINGS if o and text.startswith(o)), "")
    closing = next((c for c in CLOSINGS if c and text.endswith(c)), "")
    text = text[len(opening) : len(text) - len(closing)]
    for family, frames in _FRAMES.items():
        for number, frame in enumerate(frames):
            before, after = frame.split("{}")
            if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
                arguments = _read_topic(family, text[len(before) : len(text) - len(after)])
                if arguments is not None:
                    return Request(family, arguments, number, opening, closing)
    return None


_DOUBLE = re.compile(r"twice (\d+)")
_ACTIONS = frozenset(task.action for task in TASKS)


def _read_topic(family: Family, topic: str) -> tuple[str, ...] | None:
    if family == "how":
        return (topic,) if topic in _ACTIONS else None
    if family == "fact":
        for relation, (phrase, table) in RELATIONS.items():
            prefix = phrase.removesuffix("{}")
            if topic.startswith(prefix) and topic.removeprefix(prefix) in table:
                return relation, topic.removeprefix(prefix)
        return None
    if family == "example":
        kind = topic.removeprefix("name ")
        return (kind,) if topic.startswith("name ") and kind in EXAMPLES else None
    match = _DOUBLE.fullmatch(topic)
    return match.groups() if match else None
