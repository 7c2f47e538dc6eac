"""Files of whole dialogues, one JSON object a line: what pretraining and distillation learn from."""

from __future__ import annotations

import json
from pathlib import Path

from models.chat.format import ChatFormatError, Message

DIALOGUES_FILE = "dialogues.jsonl"


def read_dialogues(path: Path) -> list[list[Message]]:
    """The dialogues of a JSONL file; plain text counts as one assistant message.

    Raises:
        ChatFormatError: no file, no dialogue, or a line that is neither a dialogue nor a text.
    """
    if not path.exists():
        raise ChatFormatError(f'{path} is missing; expected one JSON object with "messages" or "text" a line.')
    dialogues: list[list[Message]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if "text" in record:
                    messages = [Message(role="assistant", content=str(record["text"]))]
                else:
                    messages = [Message(role=m["role"], content=m["content"]) for m in record["messages"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ChatFormatError(
                    f"{path} line {number} is no dialogue ({error!r}): {line[:80].strip()}"
                ) from error
            if messages:
                dialogues.append(messages)
    if not dialogues:
        raise ChatFormatError(f"{path} holds no dialogue; expected at least one.")
    return dialogues
