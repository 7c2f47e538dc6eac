"""Messages as files have them: roles in every spelling, content as a text or as parts, one shape as a result.

Whatever reads messages out of a file reads them here: the formats of comparisons, and the files that a configuration
names.
"""

from __future__ import annotations

from typing import Any

from orchestrator.data.formats.records import Message, RawRecord, Refused, Role, member

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
}
"""What public sets call the roles, in lower case."""

_TEXT_PARTS = ("text", "input_text", "output_text")
_NO_TEXT = ("image", "image_url", "audio", "input_audio", "video", "file")


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
        role = role_of(value, role_key, key)
        messages.append({"role": role, "content": content_of(value, content_key)})
    return messages


def role_of(message: RawRecord, field: str, where: str) -> Role:
    """The role of a message, whatever its spelling.

    Raises:
        Refused: there is none, or it is unknown.
    """
    name = member(message, field, str)
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise Refused("unknown_value", f"{where} has the role {name!r}; known are {', '.join(ROLES)}")
    return role


def content_of(message: RawRecord, field: str) -> str:
    """The text of a message, its parts in one piece where it comes in parts.

    Raises:
        Refused: it is no text, or a part of it is a picture, a sound or something else that no text can say.
    """
    content = member(message, field, (str, list, dict))
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(_text_of(part, field) for part in parts)


def _text_of(part: Any, field: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise Refused("wrong_type", f"{field} has a part that is {type(part).__name__}; expected an object with a text")
    kind = part.get("type", "text")
    held = [name for name in _NO_TEXT if part.get(name) is not None]
    if kind not in _TEXT_PARTS or held:
        raise Refused("not_text", f"{field} has a part of type {held[0] if held else kind!r}; only text can be read")
    return str(member(part, "text", str))
