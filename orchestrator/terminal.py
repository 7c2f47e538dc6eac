"""What a terminal can't show, in letters that it can: a command that has done its work does not end on a character."""

from __future__ import annotations

import codecs
import sys
import unicodedata

_HANDLER = "plainly"
_PLAIN = {
    "…": "...",
    "–": "-",
    "—": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "→": "->",
    "←": "<-",
    "─": "-",
    "│": "|",
    "×": "x",
    "·": "*",
    "•": "*",
    "±": "+/-",
    "≥": ">=",
    "≤": "<=",
    "≈": "~",
    "√": "sqrt ",
    "█": "#",
    "▇": "#",
    "░": ".",
}


def print_whatever_comes() -> None:
    """Let standard output and error take every character, whatever the terminal's encoding is."""
    codecs.register_error(_HANDLER, _plainly)
    for stream in (sys.stdout, sys.stderr):
        # What a test or a notebook puts in their place may be no file.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    # "é" is an "e" with something on it; what has no letter below is a question mark.
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return letters or ("" if unicodedata.combining(character) else "?")
