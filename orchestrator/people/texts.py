"""When two texts say the same, though they took different ways: through a form, through JSON, from a model."""

from __future__ import annotations

import unicodedata


def with_plain_line_ends(text: str) -> str:
    """The text with LF alone at its line ends: browsers send CRLF, some models CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def same_text(one: str, other: str) -> bool:
    """Whether nobody who reads both could tell them apart: line ends, blanks at ends and composed letters aside."""
    return _as_read(one) == _as_read(other)


def _as_read(text: str) -> str:
    lines = with_plain_line_ends(unicodedata.normalize("NFC", text)).split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()
