"""prompt/chosen/rejected, as texts or as messages, and the `conversations` form of LLaMA-Factory.

The prompt may be absent (then it is what both sides share), a text, or messages; the sides may repeat the prompt or
only continue it. How the two are told apart is in `sides.py`, how messages are read in `messages.py`.
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
    Side,
    comparison_of,
)
from orchestrator.data.formats.sides import Divided, divided, prompt_of, side_of

_OWN_KEYS = ("prompt", "chosen", "rejected", "conversations", "system", "question")


def parse(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison; the chosen side is `a`. A field `question` is kept where it is one of ours."""
    yield _comparison(record, divided(record, prompt_of(record.get("prompt"))))


def parse_conversations(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison of LLaMA-Factory's form: `conversations` is the prompt. Such sets are labelled by models."""
    prompt = prompt_of(record.get("conversations"), "conversations")
    yield _comparison(record, divided(record, prompt), label_kind="model")


def _comparison(record: RawRecord, parts: Divided, **fields: Any) -> ImportedComparison:
    extra = {key: value for key, value in record.items() if key not in _OWN_KEYS}
    question = record.get("question")
    if question is not None and question not in ("helpful", "harmless"):
        extra["question"], question = question, None
    return comparison_of(
        parts.prompt, side_of(parts.chosen, "chosen"), side_of(parts.rejected, "rejected"), "a",
        source_value=extra or None, question=question, **fields,
    )  # fmt: skip


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
