"""A rater's dialogues for reading: whoever looks after raters judges them by their writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t


@dataclass(frozen=True)
class DialogueLine:
    """A dialogue in a list."""

    id: int
    task: str
    opening: str | None
    comparisons: int
    created_at: datetime


@dataclass(frozen=True)
class ReadPair:
    """A pair as it was answered."""

    id: int
    question: str
    texts: dict[str, str | None]
    replies: dict[str, int]
    """Ids of the two replies by side: `candidate:ID` of `orchestrator lineage`."""
    comparison: int | None
    chosen: str | None
    """`a`, `b` or `none`; None while it waits."""
    strength: int | None
    duration_ms: int | None
    edit: bool


@dataclass
class ReadMessage:
    """A message with the pairs that answer it, in order; depth counts from the opening."""

    id: int
    depth: int
    role: str
    content: str
    pairs: list[ReadPair] = field(default_factory=list)


@dataclass(frozen=True)
class WholeDialogue:
    """A dialogue with everything in it."""

    id: int
    task: str
    rater_id: int | None
    handle: str | None
    created_at: datetime
    ended_at: datetime | None
    messages: list[ReadMessage]


def dialogues_of(session: Session, rater_id: int, limit: int, offset: int) -> list[DialogueLine]:
    """A rater's dialogues, the newest first."""
    opening = (
        select(func.left(t.Message.content, 200))
        .where(t.Message.dialogue_id == t.Dialogue.id, t.Message.parent_id.is_(None))
        .order_by(t.Message.id)
        .limit(1)
        .scalar_subquery()
    )
    compared = (
        select(func.count())
        .select_from(t.Comparison)
        .join(t.Pair, t.Pair.id == t.Comparison.pair_id)
        .where(t.Pair.dialogue_id == t.Dialogue.id)
        .scalar_subquery()
    )
    rows = session.execute(
        select(t.Dialogue.id, t.Dialogue.task, opening, compared, t.Dialogue.created_at)
        .where(t.Dialogue.rater_id == rater_id)
        .order_by(t.Dialogue.id.desc())
        .limit(limit)
        .offset(offset)
    )
    return [DialogueLine(*row) for row in rows]


def whole_dialogue(session: Session, dialogue_id: int) -> WholeDialogue | None:
    """Every message of the tree with its pairs and choices; None where there is no such dialogue."""
    found = session.execute(
        select(t.Dialogue, t.Rater.handle)
        .outerjoin(t.Rater, t.Rater.id == t.Dialogue.rater_id)
        .where(t.Dialogue.id == dialogue_id)
    ).one_or_none()
    if found is None:
        return None
    dialogue, handle = found
    messages: dict[int, ReadMessage] = {}
    for message in session.scalars(
        select(t.Message).where(t.Message.dialogue_id == dialogue_id).order_by(t.Message.id)
    ):
        depth = messages[message.parent_id].depth + 1 if message.parent_id in messages else 0
        messages[message.id] = ReadMessage(message.id, depth, message.role, message.content)
    rows = session.execute(
        select(t.Pair, t.Candidate, t.Comparison)
        .join(t.Candidate, t.Candidate.pair_id == t.Pair.id)
        .outerjoin(t.Comparison, t.Comparison.pair_id == t.Pair.id)
        .where(t.Pair.dialogue_id == dialogue_id)
        .order_by(t.Pair.id, t.Comparison.id, t.Candidate.side)
    )
    pairs: dict[int, ReadPair] = {}
    for pair, candidate, comparison in rows:
        shown = pairs.get(pair.id)
        if shown is None:
            shown = pairs[pair.id] = ReadPair(
                pair.id,
                pair.question,
                {},
                {},
                comparison.id if comparison else None,
                comparison.side if comparison else None,
                comparison.strength if comparison else None,
                comparison.duration_ms if comparison else None,
                pair.edit_of_id is not None,
            )
            messages[pair.parent_id].pairs.append(shown)
        shown.texts[candidate.side] = candidate.text
        shown.replies[candidate.side] = candidate.id
    return WholeDialogue(
        dialogue.id,
        dialogue.task,
        dialogue.rater_id,
        handle,
        dialogue.created_at,
        dialogue.ended_at,
        list(messages.values()),
    )
