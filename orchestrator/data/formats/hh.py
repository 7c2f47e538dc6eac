"""hh-rlhf: `chosen` and `rejected`, each a whole dialogue with `\\n\\nHuman:` and `\\n\\nAssistant:` markers.

The format has no escape for its markers, so a reply may quote them. The rule for where the prompt ends is in
`split_pair`; the export leaves out what would not read back the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from orchestrator.data.formats.records import (
    ImportedComparison,
    Message,
    RawRecord,
    Refused,
    Role,
    Side,
    comparison_of,
    member,
)

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
_MARKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_MARKERS = {"user": HUMAN, "assistant": ASSISTANT}


def parse(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison; the chosen side is `a`."""
    prompt, chosen, rejected = split_pair(member(record, "chosen", str), member(record, "rejected", str))
    extra = {key: value for key, value in record.items() if key not in ("chosen", "rejected")}
    yield comparison_of(prompt, chosen, rejected, "a", may_quote=True, source_value=extra or None)


def split_pair(chosen: str, rejected: str) -> tuple[list[Message], Side, Side]:
    """The shared prompt and the two sides.

    The prompt ends at the last assistant marker up to which both texts are equal; what follows is the reply,
    verbatim, even where it quotes markers. Only where both remainders are well-formed dialogues do they become
    messages: a source that gives each side its own history (MT-bench turn 2, two chats that went apart).

    Raises:
        Refused: a text does not begin with a human turn, the two share no assistant marker, or what follows it is no
            reply but a dialogue.
    """
    chosen, rejected = opened(chosen), opened(rejected)
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.startswith(HUMAN):
            raise Refused("malformed_dialogue", f"{name} begins with {text[:20]!r}; expected {HUMAN!r}")
        if ASSISTANT not in text:
            raise Refused("malformed_dialogue", f"{name} has no {ASSISTANT!r}")
    cut = chosen.rfind(ASSISTANT)
    while cut >= 0 and not rejected.startswith(chosen[: cut + len(ASSISTANT)]):
        cut = chosen.rfind(ASSISTANT, 0, cut)
    if cut < 0:
        raise Refused("prompts_differ", f"the two texts share no beginning that ends with {ASSISTANT!r}")
    end = cut + len(ASSISTANT)
    a, b = _sides(chosen[end:], rejected[end:])
    return split_messages(chosen[:cut]), a, b


def opens(text: str) -> bool:
    """Whether a text begins with a person's turn."""
    return opened(text).startswith(HUMAN)


def opened(text: str) -> str:
    """The text with the two line ends before its first marker, where only white space stands there.

    Line ends of Windows become plain ones where they stand before a marker.
    """
    if "\r\n\r\nAssistant:" in text:
        text = text.replace("\r\n", "\n")
    return text if text.startswith(HUMAN) or not text.lstrip().startswith("Human:") else f"\n\n{text.lstrip()}"


def split_messages(text: str) -> list[Message]:
    """The messages of a text that begins with a marker. Empty messages and repeated roles stay as they are."""
    pieces = _MARKER.split(text)
    return [
        {"role": _ROLES[name], "content": content.removeprefix(" ")}
        for name, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _sides(chosen: str, rejected: str) -> tuple[Side, Side]:
    if HUMAN in chosen and HUMAN in rejected:
        a, b = split_messages(ASSISTANT + chosen), split_messages(ASSISTANT + rejected)
        if alternates(a) and alternates(b):
            return Side(a[-1]["content"], a[:-1]), Side(b[-1]["content"], b[:-1])
    for text in (chosen, rejected):
        if text.lstrip(" ").startswith((HUMAN, ASSISTANT)):
            raise Refused("malformed_dialogue", f"where a reply should stand is a turn: {text[:20]!r}")
    return Side(chosen.removeprefix(" ")), Side(rejected.removeprefix(" "))


def alternates(messages: list[Message]) -> bool:
    """Whether the assistant and the user take turns, the assistant first and last."""
    return [message["role"] for message in messages] == ["assistant", "user"] * (len(messages) // 2) + ["assistant"]


def render_messages(messages: list[Message]) -> str | None:
    """The messages as one text, or None where a role has no marker."""
    if any(message["role"] not in _MARKERS for message in messages):
        return None
    return "".join(f"{_MARKERS[message['role']]} {message['content']}" for message in messages)


def render(prompt: list[Message], better: Side, worse: Side) -> RawRecord | None:
    """The record of a comparison, or None where a role has no marker."""
    chosen = render_messages([*prompt, *better.messages()])
    rejected = render_messages([*prompt, *worse.messages()])
    return None if chosen is None or rejected is None else {"chosen": chosen, "rejected": rejected}
