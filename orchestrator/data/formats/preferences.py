"""prompt/chosen/rejected, as texts or as messages, and the `conversations` form of LLaMA-Factory.

Message lists come as `role`/`content` or `from`/`value`. The prompt may be absent (then it is what both sides
share), a text, or messages; the sides may repeat the prompt or only continue it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.data.formats import hh
from orchestrator.data.formats.records import (
    ImportedComparison,
    Message,
    RawRecord,
    Refused,
    Role,
    Side,
    comparison_of,
    member,
    optional,
)

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""What public sets call the roles."""

_OWN_KEYS = ("prompt", "chosen", "rejected", "conversations", "system", "question")


def parse(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison; the chosen side is `a`. A field `question` is kept where it is one of ours."""
    chosen = _continuation(record, "chosen")
    rejected = _continuation(record, "rejected")
    if record.get("prompt") is None:
        prompt = shared_prompt(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        prompt = _prompt(record["prompt"])
        if chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        elif any(len(side) > 1 and side[0]["role"] == "user" for side in (chosen, rejected)):
            # `prompt` beside whole dialogues, as in UltraFeedback, where it is only the first message.
            prompt = shared_prompt(chosen, rejected)
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if (system := optional(record, "system", str)) and prompt[:1] and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    yield _comparison(record, prompt, chosen, rejected)


def parse_conversations(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison of LLaMA-Factory's form: `conversations` is the prompt. Such sets are labelled by models."""
    prompt = messages_of(member(record, "conversations", list), "conversations")
    chosen, rejected = _continuation(record, "chosen"), _continuation(record, "rejected")
    if (system := optional(record, "system", str)) and prompt[:1] and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    yield _comparison(record, prompt, chosen, rejected, label_kind="model")


def _comparison(
    record: RawRecord, prompt: list[Message], chosen: list[Message], rejected: list[Message], **fields: Any
) -> ImportedComparison:
    extra = {key: value for key, value in record.items() if key not in _OWN_KEYS}
    question = record.get("question")
    if question is not None and question not in ("helpful", "harmless"):
        extra["question"], question = question, None
    return comparison_of(
        prompt, side_of(chosen, "chosen"), side_of(rejected, "rejected"), "a",
        source_value=extra or None, question=question, **fields,
    )  # fmt: skip


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        if value.startswith(hh.HUMAN):
            text = value.removesuffix(" ")
            return hh.split_messages(text.removesuffix(hh.ASSISTANT) if text.endswith(hh.ASSISTANT) else value)
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        return messages_of(value, "prompt")
    raise Refused("wrong_type", f"prompt is {type(value).__name__}; expected a text or a list of messages")


def _continuation(record: RawRecord, key: str) -> list[Message]:
    value = member(record, key, (str, list, dict))
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return messages_of(value if isinstance(value, list) else [value], key)


def shared_prompt(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The longest common beginning that ends with a user message and leaves each side a reply.

    Raises:
        Refused: there is none.
    """
    length = 0
    while length < min(len(chosen), len(rejected)) - 1 and chosen[length] == rejected[length]:
        length += 1
    while length and chosen[length - 1]["role"] != "user":
        length -= 1
    if not length:
        raise Refused("prompts_differ", "the two sides share no beginning that ends with a user message")
    return chosen[:length]


def side_of(messages: list[Message], key: str) -> Side:
    """The side whose last message is the reply.

    Raises:
        Refused: it does not end with an assistant message.
    """
    if not messages or messages[-1]["role"] != "assistant":
        found = messages[-1]["role"] if messages else "nothing"
        raise Refused("no_reply", f"{key} ends with {found}; expected an assistant message")
    return Side(messages[-1]["content"], messages[:-1])


def messages_of(values: list[Any], key: str) -> list[Message]:
    """Messages from `role`/`content` or `from`/`value` objects.

    Raises:
        Refused: another shape, an unknown role, content that is not text.
    """
    messages: list[Message] = []
    for value in values:
        if not isinstance(value, dict):
            raise Refused("wrong_type", f"{key} holds {type(value).__name__}; expected messages")
        role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
        role = ROLES.get(member(value, role_key, str))
        if role is None:
            raise Refused("unknown_value", f"{key} has the role {value[role_key]!r}; known are {', '.join(ROLES)}")
        messages.append({"role": role, "content": member(value, content_key, str)})
    return messages


def render_strings(prompt: list[Message], better: Side, worse: Side) -> RawRecord | None:
    """prompt/chosen/rejected as texts, or None where a side has a history of its own or a role has no marker.

    A longer prompt is written with hh-rlhf's markers, up to and with the last `\n\nAssistant:`.
    """
    if better.history or worse.history:
        return None
    text = prompt[0]["content"] if len(prompt) == 1 else hh.render_messages(prompt)
    if text is None:
        return None
    prompt_text = text if len(prompt) == 1 else text + hh.ASSISTANT
    return {"prompt": prompt_text, "chosen": better.text, "rejected": worse.text}


def render_messages(prompt: list[Message], better: Side, worse: Side) -> RawRecord | None:
    """prompt/chosen/rejected as messages, which can hold every dialogue that begins with a person."""
    return {"prompt": prompt, "chosen": better.messages(), "rejected": worse.messages()}
