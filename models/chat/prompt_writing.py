"""Prompts that a model writes after the example of people's: which examples it is shown, and what of it is kept.

Pure functions of their arguments, standard library alone. Read next: `models/jobs/write_prompts.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Verdict = Literal["kept", "unfinished", "short", "copy", "repeat", "held_out"]

# A text of which so large a share of word triples stands in one of its examples is that example, a little changed.
COPIED_SHARE = 0.8
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def message_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """What a list of messages is found by, SHA-256 in hex; the texts themselves need not be held."""
    plain = [[message.get("role"), message.get("content")] for message in messages]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation: what two prompts are compared by."""
    return _PUNCTUATION.sub(" ", text.casefold()).split()


def is_copy(text: str, example: str) -> bool:
    """Whether a text's word triples (its words, where it has fewer than three) stand in the example, four of five.

    "how do I boil an egg" has four triples; after "How do I boil an egg today?" all stand there. "how do I boil a
    potato" has four too, two of which stand there: no copy.
    """
    mine, theirs = words_of(text), words_of(example)
    size = min(3, len(mine))
    if size == 0:
        return False
    triples = {tuple(mine[i : i + size]) for i in range(len(mine) - size + 1)}
    known = {tuple(theirs[i : i + size]) for i in range(len(theirs) - size + 1)}
    return len(triples & known) / len(triples) >= COPIED_SHARE


class Sieve:
    """Keeps what is worth asking, each once, and never what opens a held-out dialogue."""

    def __init__(self, train_openings: Sequence[str], held_out_openings: Sequence[str], min_characters: int) -> None:
        self._seen = {" ".join(words_of(text)) for text in train_openings}
        self._held_out = {" ".join(words_of(text)) for text in held_out_openings}
        self._min_characters = min_characters

    def judge(self, text: str, examples: Sequence[str], *, finished: bool) -> Verdict:
        """What becomes of a text; a text that is kept is a repeat from then on."""
        words = " ".join(words_of(text))
        if not finished:
            return "unfinished"
        if len(text) < self._min_characters or not words:
            return "short"
        if words in self._held_out:
            return "held_out"
        if words in self._seen:
            return "repeat"
        if any(is_copy(text, example) for example in examples):
            return "copy"
        self._seen.add(words)
        return "kept"
