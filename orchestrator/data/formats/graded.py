"""Graded comparisons in five steps with evaluator and time, as in the human evaluation of Tulu 1."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from orchestrator.data.formats.records import (
    ImportedComparison,
    RawRecord,
    Refused,
    Side,
    comparison_of,
    member,
    optional,
)

PREFERENCES: dict[str, tuple[Literal["a", "b", "none"], int | None]] = {
    "a-is-better": ("a", 4),
    "a-is-slightly-better": ("a", 1),
    "tie": ("none", None),
    "b-is-slightly-better": ("b", 1),
    "b-is-better": ("b", 4),
}
"""Side and strength. The ends of the source's scale are the ends of ours."""

_TEXTS = ("prompt", "completion_a", "completion_b")


def parse(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison; times without a zone are taken as UTC."""
    preference = member(record, "preference", str)
    if preference not in PREFERENCES:
        raise Refused("unknown_value", f"preference is {preference!r}; known are {', '.join(PREFERENCES)}")
    side, strength = PREFERENCES[preference]
    sides = [
        Side(member(record, f"completion_{letter}", str), contestant=optional(record, f"model_{letter}", str))
        for letter in ("a", "b")
    ]
    yield comparison_of(
        [{"role": "user", "content": member(record, "prompt", str)}], sides[0], sides[1], side,
        reason="tie" if side == "none" else None,
        strength=strength,
        rater=optional(record, "evaluator", str),
        external_id=optional(record, "instance_id", str),
        source_value={key: value for key, value in record.items() if key not in _TEXTS},
        decided_at=_time(optional(record, "timestamp", str)),
    )  # fmt: skip


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise Refused("wrong_type", f"timestamp is {text!r}; expected YYYY-MM-DD HH:MM:SS") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
