"""Where the prompt ends and the replies begin, whatever of the prompt the sides repeat.

A source gives a prompt or none, and sides that are bare replies, or repeat all of the prompt, its end, or the prompt
and what came before it. `divided` finds for each side what it adds, so that no message stands twice and no reply
holds a whole dialogue; what contradicts itself is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.data.formats import hh
from orchestrator.data.formats.messages import content_of, messages_of
from orchestrator.data.formats.records import Message, RawRecord, Refused, Side, holds_dialogue, member, optional


def prompt_of(value: Any, key: str = "prompt") -> list[Message]:
    """The messages of a prompt: none where it is absent or blank, so that the sides must say what was asked.

    Raises:
        Refused: it is neither a text nor a list of messages.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return _prompt_of_text(value)
    if _is_parts(value):
        return [{"role": "user", "content": content_of({key: value}, key)}]
    if isinstance(value, list | dict):
        return messages_of(value if isinstance(value, list) else [value], key)
    raise Refused("wrong_type", f"{key} is {type(value).__name__}; expected a text or a list of messages")


def _prompt_of_text(value: str) -> list[Message]:
    if not value.strip():
        return []
    if _is_written_out(value):
        return _written_out(value, "prompt")
    opened = hh.opened(value)
    # A person may write "Human: ..." too; with the marker's line ends, or an answer after it, it is a dialogue.
    if not (opened.startswith(hh.HUMAN) and (hh.ASSISTANT in opened or value.lstrip(" ").startswith("\n"))):
        return [{"role": "user", "content": value}]
    text = opened.rstrip()
    return hh.split_messages(text.removesuffix(hh.ASSISTANT) if text.endswith(hh.ASSISTANT) else opened)


@dataclass(frozen=True, slots=True)
class Divided:
    """A prompt, and what each side adds to it."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def divided(record: RawRecord, prompt: list[Message]) -> Divided:
    """The prompt and what `chosen` and `rejected` add to it, with the text of a field `system` before it.

    Raises:
        Refused: a side has no reply; the sides contradict the prompt, each other or the system text; or one alone is a
            dialogue in one text.
    """
    chosen, rejected = _messages(record, "chosen"), _messages(record, "rejected")
    side_of(chosen, "chosen"), side_of(rejected, "rejected")
    bare = isinstance(record["chosen"], str) and isinstance(record["rejected"], str)
    if (told := _from_texts(prompt, chosen, rejected, bare=bare)) is not None:
        parts = _put_together(prompt, *told)
    elif prompt and prompt[-1]["role"] == "user" and all(side[: len(prompt)] == prompt for side in (chosen, rejected)):
        # What the sides share after the prompt that the record names stays in each side's history.
        parts = Divided(prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    else:
        parts = _put_together(prompt, chosen, rejected)
    return replace(parts, prompt=_with_system(parts.prompt, optional(record, "system", str)))


def _messages(record: RawRecord, key: str) -> list[Message]:
    value = member(record, key, (str, list, dict))
    if isinstance(value, str) or _is_parts(value):
        return [{"role": "assistant", "content": content_of(record, key)}]
    return messages_of(value if isinstance(value, list) else [value], key)


def _is_parts(value: Any) -> bool:
    """Whether a value is content in parts, without a word of whose it is."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and "text" in part and not {"role", "from"} & part.keys() for part in value)
    )


def _from_texts(
    asked: list[Message], chosen: list[Message], rejected: list[Message], *, bare: bool
) -> tuple[list[Message], list[Message]] | None:
    """The messages of two sides that are one text each and hold more than a reply; None of sides that are none of that.

    A reply beside a dialogue may quote one, so it is not guessed which it is. Nor is it where a message says that all
    of it is the assistant's: only texts that are `bare` of a role are parted where their first turn ends.
    """
    if len(chosen) > 1 or len(rejected) > 1:
        return None
    one, other = chosen[0]["content"], rejected[0]["content"]
    dialogues = [holds_dialogue(text) for text in (one, other)]
    if dialogues == [True, True]:
        return _from_dialogues(one, other)
    if any(dialogues):
        found, plain = ("chosen", "rejected") if dialogues[0] else ("rejected", "chosen")
        raise Refused("malformed_dialogue", f"{found} is a whole dialogue in one text and {plain} is not")
    if not bare or hh.HUMAN not in one or hh.HUMAN not in other:
        return None
    if one.startswith("System:") or _opens_alike(asked, one, other):
        return _after_system(one, other)
    a, b = (hh.split_messages(f"{hh.ASSISTANT} {text}") for text in (one, other))
    return (a, b) if hh.alternates(a) and hh.alternates(b) else None


def _from_dialogues(one: str, other: str) -> tuple[list[Message], list[Message]]:
    if one.startswith(hh.ASSISTANT) and other.startswith(hh.ASSISTANT):
        return hh.split_messages(one), hh.split_messages(other)
    if _is_written_out(one) and _is_written_out(other):
        told = _written_out(one, "chosen"), _written_out(other, "rejected")
        side_of(told[0], "chosen"), side_of(told[1], "rejected")
        return told
    prompt, a, b = hh.split_pair(one, other)
    return [*prompt, *a.messages()], [*prompt, *b.messages()]


def _written_out(text: str, key: str) -> list[Message]:
    """The messages of a list that stands in one text, as JSON."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("malformed_dialogue", f"{key} is a list in one text that is not JSON ({error})") from None
    return messages_of(values, key)


def tells_all(side: Any) -> bool:
    """Whether a text is a dialogue that needs no prompt beside it, in another form than hh-rlhf's own."""
    if not isinstance(side, str):
        return False
    return _is_written_out(side) or (side.startswith("System:") and hh.HUMAN in side)


def _is_written_out(text: str) -> bool:
    return text.lstrip().startswith("[") and holds_dialogue(text)


def _opens_alike(asked: list[Message], one: str, other: str) -> bool:
    """Whether both texts begin with the same words and then put the prompt's question, or there is no prompt."""
    head = one[: one.index(hh.HUMAN)]
    question = hh.split_messages(one[len(head) :])[0]["content"].strip()
    repeats = not asked or question in [message["content"].strip() for message in asked]
    return other.startswith(head + hh.HUMAN) and repeats


def _after_system(one: str, other: str) -> tuple[list[Message], list[Message]]:
    """Two dialogues in one text each, after a system text that both begin with."""
    head = one[: one.index(hh.HUMAN)]
    if not head.startswith("System:") or not other.startswith(head + hh.HUMAN):
        raise Refused("malformed_dialogue", f"before the first turn stands {head[:40]!r}; expected System: or nothing")
    system: Message = {"role": "system", "content": head.removeprefix("System:").strip()}
    a, b = _from_dialogues(one[len(head) :], other[len(head) :])
    return [system, *a], [system, *b]


def _put_together(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Divided:
    """The parts of a record whose sides repeat what they like of the prompt.

    1. Take the system messages off. 2. See where each side meets the prompt. 3. Move what both sides share after it
    into the prompt. 4. Put the system message back, once.
    """
    bodies = [_body(messages) for messages in (prompt, chosen, rejected)]
    system = _one_system(prompt, chosen, rejected)
    asked, a, b = bodies
    if not any(message["content"].strip() for message in asked) and _is_whole(a) and _is_whole(b):
        asked = []
    opening, a, b = _met(asked, a, b)
    shared = _shared_length(a, b) if _is_whole(bodies[1]) or _is_whole(bodies[2]) else 0
    return Divided([*system, *opening, *a[:shared]], a[shared:], b[shared:])


def _body(messages: list[Message]) -> list[Message]:
    return messages[1:] if messages[:1] and messages[0]["role"] == "system" else messages


def _is_whole(body: list[Message]) -> bool:
    """Whether a side begins with what a person says, and so repeats the prompt."""
    return bool(body) and body[0]["role"] == "user"


def _one_system(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The system message of prompt and sides, which must not contradict each other."""
    heads = [messages[0] for messages in (prompt, chosen, rejected) if _body(messages) is not messages]
    if len({head["content"].strip() for head in heads}) > 1:
        raise Refused("systems_differ", "prompt, chosen and rejected begin with different system messages")
    alone = _body(prompt) is prompt and (_body(chosen) is chosen) != (_body(rejected) is rejected)
    if alone and _is_whole(_body(chosen)) and _is_whole(_body(rejected)):
        raise Refused("prompts_differ", "one of the two sides begins with a system message, the other does not")
    return heads[:1]


def _met(
    asked: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The opening that ends where prompt and sides meet, and what each side adds to it."""
    if not asked:
        if not (_is_whole(chosen) and _is_whole(rejected)):
            raise Refused("no_user_message", "there is no prompt, and the sides do not both begin with one")
        length = len(shared_prompt(chosen, rejected))
        return chosen[:length], chosen[length:], rejected[length:]
    meetings = [_meeting(asked, side, key) for side, key in ((chosen, "chosen"), (rejected, "rejected"))]
    told = [(opening, added) for opening, added in meetings if opening is not None]
    openings = [opening for opening, _ in told] or [asked]
    if len(told) == 1 and len(told[0][1]) > 1:
        raise Refused("prompts_differ", "one side goes on for several turns after the prompt, the other replies to it")
    if not _same(openings[0], openings[-1]):
        raise Refused("prompts_differ", "the two sides put different messages before the prompt")
    return openings[0], meetings[0][1], meetings[1][1]


def _meeting(asked: list[Message], side: list[Message], key: str) -> tuple[list[Message] | None, list[Message]]:
    """The dialogue up to the prompt's end as this side tells it, None for a bare reply; and what the side adds."""
    if not _is_whole(side):
        return None, side
    for length in range(min(len(asked), len(side)), 0, -1):
        if _same(asked[-length:], side[:length]):
            return [*asked[:-length], *side[:length]], side[length:]
    for end in range(len(side) - 1, len(asked), -1):
        if _same(asked, side[end - len(asked) : end]):
            return side[:end], side[end:]
    if asked[-1]["role"] == "assistant":
        return asked, side
    raise Refused("prompts_differ", f"{key} is a dialogue in which the prompt does not stand")


def _same(one: list[Message], other: list[Message]) -> bool:
    """Whether two pieces of a dialogue say the same but for white space around it."""
    return [(m["role"], m["content"].strip()) for m in one] == [(m["role"], m["content"].strip()) for m in other]


def _with_system(prompt: list[Message], system: str | None) -> list[Message]:
    if system is None or not system.strip() or not prompt:
        return prompt
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": system}, *prompt]
    if prompt[0]["content"].strip() != system.strip():
        raise Refused("systems_differ", "the field system is another text than the system message")
    return prompt


def shared_prompt(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The longest common beginning that ends with a user message and leaves each side a reply.

    Raises:
        Refused: there is none.
    """
    length = _shared_length(chosen, rejected)
    if not length:
        raise Refused("prompts_differ", "the two sides share no beginning that ends with a user message")
    return chosen[:length]


def _shared_length(chosen: list[Message], rejected: list[Message]) -> int:
    length = 0
    while length < min(len(chosen), len(rejected)) - 1 and chosen[length] == rejected[length]:
        length += 1
    while length and chosen[length - 1]["role"] != "user":
        length -= 1
    return length


def side_of(messages: list[Message], key: str) -> Side:
    """The side whose last message is the reply.

    Raises:
        Refused: it does not end with an assistant message.
    """
    if not messages or messages[-1]["role"] != "assistant":
        found = messages[-1]["role"] if messages else "nothing"
        raise Refused("no_reply", f"{key} ends with {found}; expected an assistant message")
    return Side(messages[-1]["content"], messages[:-1])
