"""Text of a reply that is still growing: what can be shown of it without ever being taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"

# Ids decoded together. A window slides along, so that a long reply costs the same per token as a short one;
# its overlap gives a token the neighbours that its spelling may depend on (a leading space, for one).
_WINDOW = 16
_OVERLAP = 8


class TextStream:
    """Turns a growing list of ids into pieces of text whose concatenation is the decoded reply."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._start = 0
        self._shown = 0

    def push(self, ids: Sequence[int], *, last: bool) -> str:
        """The new piece of text, given all ids so far; bytes of an unfinished character wait for the rest."""
        text = self._decode(ids[self._start :])
        safe = text if last else text.rstrip(REPLACEMENT)
        piece = safe[self._shown :]
        self._shown = max(self._shown, len(safe))
        if safe == text and len(ids) - self._start > _WINDOW:
            self._start = len(ids) - _OVERLAP
            self._shown = len(self._decode(ids[self._start :]))
        return piece
