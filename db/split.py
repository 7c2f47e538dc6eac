"""The split of dialogues into training and held-out part, by a stable hash of how a dialogue opens.

Every comparison of a dialogue, in whatever week and from whatever file, falls on the same side.
"""

from __future__ import annotations

import hashlib
import re

# The leading 32 bits of the key are the dialogue's place in [0, 1): fine enough for any fraction, exact in SQL.
HASH_DIGITS = 8
HASH_RANGE = 16**HASH_DIGITS

_PUNCTUATION = re.compile(r"[^\w\s]|_")


def normalised(text: str) -> str:
    """Lower case, without punctuation, whitespace collapsed: `"Hi,  there!"` and `"hi there"` are the same opening.

    Letters and digits of every script stay. An opening of punctuation alone is kept as it is, stripped, so that
    "?" and "!" are not the same dialogue.
    """
    words = " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())
    return words or text.strip()


def split_key(text: str) -> str:
    """SHA-256 (hex) of the normalised opening message."""
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()


def held_out_threshold(fraction: float) -> int:
    """Keys whose leading 32 bits are below this number are held out."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"the held-out fraction is {fraction}; expected a number from 0 to 1")
    return int(fraction * HASH_RANGE)


def is_held_out(key: str, fraction: float) -> bool:
    """Whether the dialogue with this split key is held out. Raising the fraction only ever adds dialogues.

    5 % of 2^32 is 214748364.8, so the threshold is 0x0ccccccc: a key beginning 0ccccccb is held out, 0ccccccc is not.
    """
    return int(key[:HASH_DIGITS], 16) < held_out_threshold(fraction)
