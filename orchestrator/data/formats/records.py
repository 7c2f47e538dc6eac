"""What every reader gives: comparisons in one shape, or a refusal with a reason code.

Readers are pure functions of one JSON record. Read `docs/reference/formats.md` for the formats and the codes,
`orchestrator/data/importing.py` for what becomes of a comparison.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn of a dialogue."""

    role: Role
    content: str


REASONS = {
    "not_json": "the line is not JSON, or JSON that Python or Postgres cannot hold",
    "not_object": "the JSON value is not an object",
    "missing_field": "a field that the format needs is absent",
    "wrong_type": "a field holds another type than the format says",
    "unknown_value": "a verdict, role or other closed field holds a value that the format does not know",
    "malformed_dialogue": "the text does not begin with a human turn or has no assistant turn; or a whole dialogue "
    "stands where a reply should",
    "prompts_differ": "the two sides share no beginning that ends before an assistant reply",
    "no_user_message": "the prompt does not end with a user message",
    "no_reply": "a side does not end with an assistant message",
    "systems_differ": "there are two different system texts",
    "not_text": "a message holds a picture, a sound or another part that is no text",
    "deleted": "the message was deleted or turned down where it comes from, or it answers one that was",
    "identical_replies": "both sides are the same",
    "unknown_question": "the verdict names a question that is not in the questions file",
    "unknown_answer": "the verdict names a model without an answer to that question",
    "unranked": "the reply has ranked or unranked siblings but no rank of its own",
    "equal_ranks": "two sibling replies carry the same rank",
    "no_comparison": "the tree ranks no two replies against each other",
    "too_long": "a name is longer than an index can hold",
    "nul": "a text holds the character NUL, which Postgres cannot store",
    "lone_surrogate": "a text holds half of a surrogate pair, which is not Unicode text",
    "repeat": "the same rater has compared this pair before",
}
"""Every reason code of the quarantine, with its meaning."""


class Refused(Exception):
    """A record that cannot become a comparison: a reason code, and what was found."""

    def __init__(self, reason: str, detail: str, raw: str | None = None) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason code {reason!r}")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.raw = raw
        """The part of the record that was refused; the whole record where None."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two replies, with the messages between the shared prompt and itself where there are any."""

    text: str
    history: list[Message] = field(default_factory=list)
    contestant: str | None = None
    """Name of the model that wrote it, or of its weights (`sha256:...`) where they are not in our store."""
    sampling: dict[str, Any] | None = None
    seed: int | None = None
    reply_tokens: int | None = None
    truncated: bool | None = None

    def messages(self) -> list[Message]:
        """The messages that continue the prompt; the last one is the reply that was judged."""
        return [*self.history, {"role": "assistant", "content": self.text}]


@dataclass(frozen=True, slots=True)
class ImportedComparison:
    """A comparison as a source gives it. What is None is taken from the options of the import."""

    prompt: list[Message]
    a: Side
    b: Side
    side: Literal["a", "b", "none"]
    reason: Literal["cant_tell", "tie"] | None = None
    strength: int | None = None
    rater: str | None = None
    """Name in the source; None is the source's anonymous rater."""
    label_kind: Literal["human", "model"] | None = None
    question: str | None = None
    external_id: str | None = None
    """The source's own name of the dialogue."""
    source_value: dict[str, Any] | None = None
    decided_at: datetime | None = None
    raw: str | None = None
    """The part of the record that this comparison came from; the whole record where None."""
    own: OwnFields | None = None


@dataclass(frozen=True, slots=True)
class OwnFields:
    """Columns that only the product's own format carries."""

    identity: str
    dialogue_identity: str
    source: str
    tranche: str
    task: str
    purpose: str
    instruction_version: str | None
    pinned_split: str | None
    system: str | None
    rater_kind: str
    duration_ms: int | None


MAX_NAME_CHARACTERS = 500
"""Of raters and identities: Postgres' index entries end at 2,700 bytes."""

RawRecord = Mapping[str, Any]
"""A JSON object of a file as it was read, or as it will be written: nothing is known of what it holds."""

Parser = Callable[[RawRecord], Iterable[ImportedComparison | Refused]]
"""Reads one JSON object; gives comparisons and refusals, or raises `Refused` for the whole record."""


# A text that begins with one of hh-rlhf's markers, with a person's turn before the assistant's in another spelling,
# with the marks of a chat template, or that is a list of messages written out as one text (what tables make of lists).
_DIALOGUES = re.compile(
    r"\s*?(?:"
    r"\n[ \t\r]*\n(?:Human|Assistant):"
    r"|(?:#{1,4} *)?(?:Human|User):.*?\n[ \t]*(?:#{1,4} *)?(?:Assistant|AI):"
    r"|\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:"
    r"|(?:(?:<s>|<bos>|<\|begin_of_text\|>)\s*)?(?:<\|(?:im_start|start_header_id|user|system)\|>|<start_of_turn>|\[INST\])"
    r")",
    re.DOTALL,
)


def holds_dialogue(text: str) -> bool:
    """Whether a text is a whole dialogue, markers and all, and so no reply."""
    return _DIALOGUES.match(text) is not None


def comparison_of(
    prompt: list[Message],
    a: Side,
    b: Side,
    side: Literal["a", "b", "none"],
    *,
    as_shown: bool = False,
    may_quote: bool = False,
    **fields: Any,
) -> ImportedComparison:
    """A comparison whose shape has been checked.

    Args:
        as_shown: Whether the sides are known to have been shown, as in the product's own format: two equal ones are
            allowed then, and replies of any kind.
        may_quote: Whether the format has marks of its own for where a reply begins, so that a reply may look like a
            dialogue.

    Raises:
        Refused: the prompt does not end with a user message, both sides are the same, or one is a whole dialogue.
    """
    if not prompt or prompt[-1]["role"] != "user":
        found = prompt[-1]["role"] if prompt else "nothing"
        raise Refused("no_user_message", f"the prompt ends with {found}; expected a user message")
    for name in (fields.get("rater"), fields.get("external_id")):
        short_name(name)
    if not (as_shown or may_quote) and (dialogues := [text for text in (a.text, b.text) if holds_dialogue(text)]):
        raise Refused("malformed_dialogue", f"where a reply should stand is a whole dialogue: {dialogues[0][:40]!r}")
    if a.text == b.text and a.history == b.history and not as_shown:
        raise Refused("identical_replies", "both sides are the same text")
    return ImportedComparison(prompt=prompt, a=a, b=b, side=side, **fields)


def short_name(name: str | None) -> None:
    """Check that a name fits an index.

    Raises:
        Refused: it is longer.
    """
    if name is not None and len(name) > MAX_NAME_CHARACTERS:
        raise Refused("too_long", f"a name has {len(name)} characters; expected at most {MAX_NAME_CHARACTERS}")


def member(record: RawRecord, key: str, kind: type | tuple[type, ...]) -> Any:
    """The value of a field; where a whole number is expected, 2.0 is 2.

    Raises:
        Refused: the field is absent or of another type.
    """
    if key not in record:
        raise Refused("missing_field", f"no field {key!r}; found {', '.join(sorted(record)[:12])}")
    value = whole(record[key], key) if kind is int else record[key]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Refused("wrong_type", f"{key} is beyond 64 bits")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        expected = kind.__name__ if isinstance(kind, type) else " or ".join(part.__name__ for part in kind)
        raise Refused("wrong_type", f"{key} is {type(value).__name__}; expected {expected}")
    return value


def whole(value: Any, key: str) -> Any:
    """The value, as an int where it is a whole number written as a float: a column with gaps has only floats.

    Raises:
        Refused: it is a number between two whole ones.
    """
    if not isinstance(value, float):
        return value
    if not value.is_integer():
        raise Refused("wrong_type", f"{key} is {value}; expected a whole number")
    return int(value)


def optional(record: RawRecord, key: str, kind: type | tuple[type, ...]) -> Any:
    """The value of a field that may be absent or null.

    Raises:
        Refused: the field is of another type.
    """
    return None if record.get(key) is None else member(record, key, kind)


def storable(value: Any) -> None:
    """Check that Postgres can hold every text in a JSON value.

    Raises:
        Refused: a NUL or half of a surrogate pair, in a key or a value.
    """
    if isinstance(value, str):
        if "\x00" in value:
            raise Refused("nul", f"a text holds NUL at character {value.index(chr(0))}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Refused(
                "lone_surrogate", f"a text holds half of a surrogate pair at character {error.start}"
            ) from None
    elif isinstance(value, dict):
        for key, item in value.items():
            storable(key)
            storable(item)
    elif isinstance(value, list):
        for item in value:
            storable(item)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def load_object(text: str, *, check: bool = True) -> RawRecord:
    """The JSON object in a text; `check` that Postgres can hold it.

    Raises:
        Refused: not JSON, not an object, or with text that Postgres cannot hold.
    """
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        # ValueError also covers NaN and integers of more than 4300 digits, which Python refuses to parse.
        raise Refused("not_json", str(error) or type(error).__name__) from None
    if not isinstance(value, dict):
        raise Refused("not_object", f"found {type(value).__name__}; expected an object")
    if not check:
        return value
    # Raw control characters are no JSON, so bad characters can only come from escapes: look for these first,
    # since the walk through the record costs more than reading it.
    if "\\u0000" in text or "\\ud" in text or "\\uD" in text:
        storable(value)
    if "e" in text or "E" in text:
        _finite(value)
    return value


def _finite(value: Any) -> None:
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise Refused("not_json", "a number is too large for a float")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(item)
