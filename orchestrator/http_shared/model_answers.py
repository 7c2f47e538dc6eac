"""What models behind OpenAI-like addresses answer, read as leniently as they differ: texts and refusals.

Engines of our own snapshots and outside contestants are read by the same rules.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

# vLLM, llama.cpp and others refuse a prompt that is too long in their own words and under codes of their own.
_TOO_LONG = re.compile(r"context (length|size|window)|maximum context|max_model_len|prompt is too long", re.IGNORECASE)
TOO_LONG = "context_length_exceeded"
_CODE = re.compile(r"[a-z][a-z_]*")
_SHOWN_CHARS = 300


@dataclass(frozen=True)
class Refusal:
    """An answer that says no."""

    status: int
    code: str
    """In words with underscores, as `context_length_exceeded`; `refused` where none is told."""
    message: str
    param: str | None = None
    """The field of the request that it is about, where that is told."""


def read_refusal(status: int, text: str) -> Refusal:
    """What an answer with an error status says, in whichever of the usual shapes."""
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    return _refusal(status, found, text)


def refusal_in(answer: Any) -> Refusal | None:
    """The refusal that an answer of status 200, or an event of a stream, holds; None where it holds none."""
    if not isinstance(answer, dict):
        return None
    # Older vLLM: {"object": "error", "message": ..., "code": 400}.
    found = answer.get("error") or (answer if answer.get("object") == "error" else None)
    return None if found is None else _refusal(_status_in(found), found, json.dumps(answer))


def _refusal(status: int, found: Any, text: str) -> Refusal:
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        error = {"message": error}
    message = error.get("message") or error.get("detail") or text
    if not isinstance(message, str):
        message = json.dumps(message, ensure_ascii=False)
    code, param = error.get("code"), error.get("param")
    if not (isinstance(code, str) and _CODE.fullmatch(code)):
        code = TOO_LONG if _TOO_LONG.search(message) else "refused"
    message = well_formed(" ".join(message.split()))[:_SHOWN_CHARS]
    return Refusal(status, code, message, param if isinstance(param, str) else None)


def _status_in(error: Any) -> int:
    """The status that an error without one of its own stands for."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        return code
    kind = str(error.get("type") or "").lower() if isinstance(error, dict) else ""
    return 400 if kind in ("invalid_request_error", "badrequesterror") else 500


def text_of(content: Any) -> str:
    """The text of a message's content: a string, a list of parts of which those that are text count, or null.

    Raises:
        ValueError: it is something else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text_of_part(part) for part in content)
    raise ValueError(f"the content is of type {type(content).__name__}; expected a text, or a list of parts")


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    # Parts of other types are thoughts, tool calls and pictures.
    shown = isinstance(part, dict) and part.get("type", "text") in ("text", "output_text")
    return str(part.get("text") or "") if shown else ""


def well_formed(text: str) -> str:
    """The text with halves of surrogate pairs joined, and single ones replaced: no file and no database takes those."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class GrowingText:
    """A text that comes in pieces, which may cut a surrogate pair in two."""

    def __init__(self) -> None:
        self.text = ""
        self._half = ""

    def add(self, piece: str) -> None:
        """More of it; the first half of a pair waits for the second."""
        piece = self._half + piece
        self._half = piece[-1:] if "\ud800" <= piece[-1:] <= "\udbff" else ""
        self.text += well_formed(piece[: len(piece) - len(self._half)])

    def end(self) -> None:
        """Nothing more comes: what waits stays a half."""
        self.text, self._half = self.text + well_formed(self._half), ""
