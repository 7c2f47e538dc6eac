"""How a dialogue opens: what its turns are known by as one dialogue, where only their messages are at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PUNCTUATION = re.compile(r"[^\w\s]|_")


def opening(messages: Sequence[Mapping[str, Any]]) -> str:
    """The first user message in lower case, without punctuation; "" where there is none.

    The same normalisation splits dialogues into training and held-out part.
    """
    text = next((str(message["content"]) for message in messages if message["role"] == "user"), "")
    words = " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())
    return words or text.strip()
