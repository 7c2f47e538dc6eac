"""What a rater's pages show, read from the database: a dialogue as it stands, and what was done today."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from db import turns as queries
from orchestrator.conversations.dialogues import SOURCE, not_yours
from orchestrator.conversations.pairs import PairRow, read_pair
from orchestrator.people.raters import RaterIdentity
from orchestrator.people.tasks import Question, TaskName


@dataclass(frozen=True)
class Turn:
    """A message on the way from the opening to where the dialogue stands."""

    role: str
    content: str


@dataclass(frozen=True)
class DialogueView:
    """A dialogue as its page shows it: the path to its newest message, and the pair that waits for a choice."""

    id: int
    task: TaskName
    question: Question
    ended_at: datetime | None
    turns: tuple[Turn, ...]
    leaf_id: int | None
    """The newest message: a reply that the next message answers, or the message whose pair is open."""
    pair: PairRow | None
    """The open pair, whether its replies are complete or not."""
    num_compared: int

    @property
    def awaits_message(self) -> bool:
        """Whether it is the rater's turn to write."""
        return self.ended_at is None and (not self.turns or self.turns[-1].role == "assistant")

    @property
    def awaits_pair(self) -> bool:
        """Whether a message stands without replies, because asking for them failed."""
        return self.ended_at is None and not self.awaits_message and self.pair is None


def dialogue_view(session: Session, rater: RaterIdentity, dialogue_id: int) -> DialogueView:
    """A dialogue of the rater's own; 404 for any other."""
    dialogue = session.get(t.Dialogue, dialogue_id)
    if dialogue is None or dialogue.rater_id != rater.id:
        raise not_yours("dialogue", dialogue_id)
    leaf_id = session.scalar(select(func.max(t.Message.id)).where(t.Message.dialogue_id == dialogue_id))
    turns: tuple[Turn, ...] = ()
    pair = None
    if leaf_id is not None:
        path = session.execute(queries.PATH, {"message_id": leaf_id}).all()
        turns = tuple(Turn(row.role, row.content) for row in reversed(path))
        if turns[-1].role == "user":
            # The newest: another tab may have asked for a second one.
            pair_id = session.scalar(
                select(func.max(t.Pair.id)).where(t.Pair.parent_id == leaf_id, t.Pair.edit_of_id.is_(None))
            )
            pair = read_pair(session, rater, pair_id) if pair_id is not None else None
    compared = session.scalar(
        select(func.count())
        .select_from(t.Comparison)
        .join(t.Pair, t.Pair.id == t.Comparison.pair_id)
        .where(t.Pair.dialogue_id == dialogue_id)
    )
    return DialogueView(
        dialogue_id,
        dialogue.task,  # type: ignore[arg-type]
        dialogue.question,  # type: ignore[arg-type]
        dialogue.ended_at,
        turns,
        leaf_id,
        pair,
        compared or 0,
    )


@dataclass(frozen=True)
class OpenDialogue:
    """A dialogue that has not ended."""

    id: int
    task: TaskName
    opening: str | None
    created_at: datetime


@dataclass(frozen=True)
class Work:
    """What a rater did in the last 24 hours and in all, and what is still open."""

    dialogues: int
    comparisons: int
    comparisons_ever: int
    open: tuple[OpenDialogue, ...]


def work_of(session: Session, rater: RaterIdentity, now: datetime | None = None) -> Work:
    """The rater's work; a day is 24 hours back, so that it means the same in every time zone."""
    since = (now or datetime.now(UTC)) - timedelta(days=1)
    mine = t.Dialogue.rater_id == rater.id
    dialogues = session.scalar(
        select(func.count(func.distinct(t.Pair.dialogue_id)))
        .join(t.Comparison, t.Comparison.pair_id == t.Pair.id)
        .where(t.Comparison.rater_id == rater.id, t.Comparison.created_at >= since)
    )
    recent, ever = session.execute(
        select(func.count().filter(t.Comparison.created_at >= since), func.count()).where(
            t.Comparison.rater_id == rater.id
        )
    ).one()
    opening = (
        select(func.left(t.Message.content, 120))
        .where(t.Message.dialogue_id == t.Dialogue.id, t.Message.parent_id.is_(None))
        .order_by(t.Message.id)
        .limit(1)
        .scalar_subquery()
    )
    rows = session.execute(
        select(t.Dialogue.id, t.Dialogue.task, opening, t.Dialogue.created_at)
        .where(mine, t.Dialogue.source == SOURCE, t.Dialogue.ended_at.is_(None))
        .order_by(t.Dialogue.id.desc())
        .limit(10)
    )
    return Work(dialogues or 0, recent, ever, tuple(OpenDialogue(*row) for row in rows))
