"""Thoughts that a reasoning model shows before its reply: raters compare replies, and they would tell who answers."""

from __future__ import annotations

# As the models of today mark them, at the very beginning of what they say.
_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[think]", "[/think]"),
    ("◁think▷", "◁/think▷"),
)
# OpenAI's open models write in channels, the last of which is the reply.
_CHANNEL, _REPLY_CHANNEL = "<|channel|>", "<|channel|>final<|message|>"
_CHANNEL_ENDS = ("<|return|>", "<|end|>")


def without_thoughts(text: str) -> str:
    """The reply after the thoughts; empty where they were cut off, the text as it is where there are none."""
    if text.lstrip().startswith(_CHANNEL):
        return _in_reply_channel(text)
    rest = text
    while (after := _after_thoughts(rest.lstrip())) is not None:
        rest = after
    if rest is text:
        rest = _after_unopened(text)
    return text if rest is text else rest.strip()


def _after_thoughts(text: str) -> str | None:
    """What follows the thoughts with which the text begins; None where it begins with none."""
    folded = text.lower()
    for opening, closing in _MARKS:
        if folded.startswith(opening):
            end = folded.find(closing)
            return "" if end < 0 else text[end + len(closing) :]
    return None


def _after_unopened(text: str) -> str:
    """The reply where the mark that opens the thoughts stands in the prompt, so that only the closing one is said."""
    lines = text.split("\n")
    for _, closing in _MARKS:
        for number, line in enumerate(lines):
            # On a line of its own: a reply may well speak of the mark.
            if line.strip().lower() == closing:
                return "\n".join(lines[number + 1 :])
    return text


def _in_reply_channel(text: str) -> str:
    _, _, reply = text.partition(_REPLY_CHANNEL)
    for end in _CHANNEL_ENDS:
        reply = reply.partition(end)[0]
    return reply.strip()
