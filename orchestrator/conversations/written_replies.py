"""Replies that people write: which wait, for whom, and how one is written. In the caller's transaction."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session

from db import tables as t
from db.turns import prompt_of
from orchestrator.conversations.pairs import Sampled, complete_candidates
from orchestrator.errors import ApiError
from orchestrator.people.raters import RaterIdentity
from orchestrator.people.tasks import Question, TaskName
from orchestrator.people.texts import same_text

_random = random.SystemRandom()
_CHOICE = 10
"""A writer is given one of so many of the oldest, so that two who come at once seldom write the same."""


@dataclass(frozen=True)
class ToWrite:
    """A reply that waits for its writer."""

    candidate_id: int
    messages: list[dict[str, str]]
    task: TaskName
    question: Question


def num_waiting(session: Session, rater: RaterIdentity) -> int | None:
    """How many replies wait for this rater to write one; None where the rater is no writer."""
    is_writer = session.scalar(
        select(
            exists()
            .where(t.Contestant.kind == "writer", t.Contestant.group_id == t.GroupMembership.group_id)
            .where(t.GroupMembership.rater_id == rater.id, t.GroupMembership.ended_at.is_(None))
        )
    )
    if not is_writer:
        return None
    return session.scalar(select(func.count()).select_from(_waiting(rater).subquery()))


def next_to_write(session: Session, rater: RaterIdentity) -> ToWrite | None:
    """One of the replies that wait longest for this rater; None where none does."""
    waiting = session.scalars(_waiting(rater).limit(_CHOICE)).all()
    return _to_write(session, _random.choice(waiting)) if waiting else None


def read_to_write(session: Session, rater: RaterIdentity, candidate_id: int) -> ToWrite:
    """A reply that this rater may write.

    Raises:
        ApiError: 404, there is no such reply for this rater; 409, somebody else has written it.
    """
    found = session.scalar(_mine(rater).where(t.Candidate.id == candidate_id))
    if found is None:
        raise ApiError(404, "not_found", f"You have no reply {candidate_id} to write.")
    if session.scalar(select(t.Candidate.text.is_not(None)).where(t.Candidate.id == candidate_id)):
        raise ApiError(409, "already_written", "Somebody else has written this reply in the meantime. Take another.")
    return _to_write(session, candidate_id)


def write_reply(session: Session, rater: RaterIdentity, candidate_id: int, text: str) -> bool:
    """Write a reply; True where it is new, False where this rater wrote the same before.

    Raises:
        ApiError: 404, there is no such reply for this rater; 409, it is written already, with another text.
    """
    if session.scalar(_mine(rater).where(t.Candidate.id == candidate_id)) is None:
        raise ApiError(404, "not_found", f"You have no reply {candidate_id} to write.")
    was_there = session.scalar(select(t.Candidate.text.is_not(None)).where(t.Candidate.id == candidate_id))
    stored = complete_candidates(session, [Sampled(candidate_id, text, None, False, None, rater.id)])
    if not same_text(stored[candidate_id], text):
        raise ApiError(
            409,
            "already_written",
            "Somebody has written this reply in the meantime; theirs stands. Keep a copy of yours if you want it.",
        )
    return not was_there


def _mine(rater: RaterIdentity) -> Select[int]:
    """Replies of other people's conversations that the rater's groups write, whether written by now or not."""
    return (
        select(t.Candidate.id)
        .join(t.Contestant, t.Contestant.id == t.Candidate.contestant_id)
        .join(t.GroupMembership, t.GroupMembership.group_id == t.Contestant.group_id)
        .join(t.Pair, t.Pair.id == t.Candidate.pair_id)
        .join(t.Dialogue, t.Dialogue.id == t.Pair.dialogue_id)
        .where(
            t.Contestant.kind == "writer",
            t.GroupMembership.rater_id == rater.id,
            t.GroupMembership.ended_at.is_(None),
            t.Dialogue.rater_id != rater.id,
        )
    )


def _waiting(rater: RaterIdentity) -> Select[int]:
    """Those that wait, the oldest first. In a dialogue that has ended nobody would read it."""
    waits = _mine(rater).where(t.Candidate.text.is_(None), t.Dialogue.ended_at.is_(None))
    return waits.distinct().order_by(t.Candidate.id)


def _to_write(session: Session, candidate_id: int) -> ToWrite:
    parent_id, task, question = session.execute(
        select(t.Pair.parent_id, t.Dialogue.task, t.Pair.question)
        .join(t.Candidate, t.Candidate.pair_id == t.Pair.id)
        .join(t.Dialogue, t.Dialogue.id == t.Pair.dialogue_id)
        .where(t.Candidate.id == candidate_id)
    ).one()
    return ToWrite(candidate_id, prompt_of(session, parent_id), task, question)  # type: ignore[arg-type]
