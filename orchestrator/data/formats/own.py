"""The product's own format: one JSON object per comparison, with every column of it, its pair and its dialogue.

Rows are named by identities that hold in every database (`pair:<id>:<time>` for a pair that a rater saw here,
a digest for an imported one), so importing an export changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from orchestrator.data.formats.messages import messages_of
from orchestrator.data.formats.records import (
    ImportedComparison,
    OwnFields,
    RawRecord,
    Refused,
    Side,
    comparison_of,
    member,
    optional,
    short_name,
)

FORMAT = "orchestrator.comparison.1"
"""Value of the field `format`; the number grows when a reader of the old form would be wrong."""

_CLOSED = {
    "tranche": ("base", "rs", "online", "imported"),
    "task": ("helpful", "red_team", "red_team_choose_best", "model_comparison", "import"),
    "purpose": ("training", "evaluation"),
    "question": ("helpful", "harmless", "more_harmful"),
    "side": ("a", "b", "none"),
    "reason": ("cant_tell", "tie", None),
    "label_kind": ("human", "model"),
    "rater_kind": ("human", "synthetic", "imported", "model"),
    "pinned_split": ("held_out", None),
}
_STRENGTHS = (1, 2, 3, 4, None)


def parse(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison with all its columns."""
    if record.get("format") != FORMAT:
        raise Refused("unknown_value", f"format is {record.get('format')!r}; expected {FORMAT!r}")
    for key, known in _CLOSED.items():
        value = record.get(key)
        if value not in known:
            raise Refused("unknown_value", f"{key} is {value!r}; known are {', '.join(map(str, known))}")
    if (record["side"] == "none") != (record.get("reason") is not None):
        raise Refused("unknown_value", f"side {record['side']!r} with reason {record.get('reason')!r}")
    strength = optional(record, "strength", int)
    if strength not in _STRENGTHS:
        raise Refused("unknown_value", f"strength is {strength}; known are {', '.join(map(str, _STRENGTHS))}")
    if record["side"] == "none" and strength is not None:
        raise Refused("unknown_value", "side 'none' with a strength")
    own = OwnFields(
        identity=member(record, "identity", str),
        dialogue_identity=member(record, "dialogue_identity", str),
        source=member(record, "source", str),
        tranche=record["tranche"],
        task=record["task"],
        purpose=record["purpose"],
        instruction_version=optional(record, "instruction_version", str),
        pinned_split=record.get("pinned_split"),
        system=optional(record, "system", str),
        rater_kind=record["rater_kind"],
        duration_ms=optional(record, "duration_ms", int),
    )
    for name in (own.identity, own.dialogue_identity, own.source):
        short_name(name)
    yield comparison_of(
        messages_of(member(record, "prompt", list), "prompt"),
        _side(member(record, "a", dict)),
        _side(member(record, "b", dict)),
        record["side"],
        as_shown=True,
        reason=record.get("reason"),
        strength=strength,
        rater=member(record, "rater", str),
        label_kind=record["label_kind"],
        question=record["question"],
        external_id=optional(record, "external_id", str),
        source_value=optional(record, "source_value", dict),
        decided_at=_time(optional(record, "decided_at", str)),
        own=own,
    )


def _side(value: RawRecord) -> Side:
    return Side(
        text=member(value, "text", str),
        history=messages_of(optional(value, "history", list) or [], "history"),
        contestant=optional(value, "contestant", str),
        sampling=optional(value, "sampling", dict),
        seed=optional(value, "seed", int),
        reply_tokens=optional(value, "reply_tokens", int),
        truncated=optional(value, "truncated", bool),
    )


def _time(text: str | None) -> datetime | None:
    try:
        time = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        time = None
    if text is not None and (time is None or time.tzinfo is None):
        raise Refused("wrong_type", f"decided_at is {text!r}; expected an ISO time with its zone")
    return time
