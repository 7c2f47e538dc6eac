"""Editing a reply (C5): the rater writes a better one, and "edit better than original" stands in place of the pair."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from db import turns
from orchestrator.conversations.dialogues import continue_with, ended, not_yours
from orchestrator.errors import ApiError
from orchestrator.people.instruction_versions import current
from orchestrator.people.raters import RaterIdentity
from orchestrator.people.tasks import SIDES, TASKS, Side
from orchestrator.people.texts import same_text

CONTESTANT = "edit"
"""Names the rater's own reply among the candidates; no weights wrote it."""

_random = random.SystemRandom()


def edit_reply(session: Session, rater: RaterIdentity, pair_id: int, side: Side, text: str) -> tuple[int, bool]:
    """Store an edited reply as better than its original; returns the message to go on from, and whether it is new.

    The same edit again is the same; another one is refused (409), as is one of a pair that was compared.
    """
    pair = session.execute(
        select(t.Pair, t.Dialogue).join(t.Dialogue, t.Dialogue.id == t.Pair.dialogue_id).where(t.Pair.id == pair_id)
    ).one_or_none()
    if pair is None or pair.Dialogue.rater_id != rater.id:
        raise not_yours("pair", pair_id)
    shown, dialogue = pair
    if not TASKS[dialogue.task].edits:  # type: ignore[index]
        raise ApiError(409, "no_edits", f"In task {dialogue.task} replies are compared, not edited. Choose one.")
    # Two tabs take turns.
    session.execute(turns.LOCK_DIALOGUE, {"dialogue_id": dialogue.id}).one()
    earlier = session.execute(
        select(t.Candidate.id, t.Candidate.text)
        .join(t.Pair, t.Pair.id == t.Candidate.pair_id)
        .where(t.Pair.edit_of_id == pair_id, t.Candidate.contestant == CONTESTANT)
    ).one_or_none()
    if earlier is not None:
        if not same_text(earlier.text, text):
            raise ApiError(409, "already_edited", f"A reply of pair {pair_id} was edited already; that edit stands.")
        return _goes_on(session, shown, earlier.id, earlier.text), False
    compared = select(t.Comparison.id).where(t.Comparison.pair_id == pair_id, t.Comparison.rater_id == rater.id)
    if session.execute(compared).first() is not None:
        raise ApiError(409, "already_compared", f"Pair {pair_id} was compared already; that choice stands.")
    session.refresh(dialogue)
    if dialogue.ended_at is not None:
        raise ended(dialogue.id)
    candidates = {c.side: c for c in session.scalars(select(t.Candidate).where(t.Candidate.pair_id == pair_id))}
    if any(candidate.text is None for candidate in candidates.values()):
        raise ApiError(409, "pair_incomplete", f"Pair {pair_id} is not complete; read both replies first.")
    original = candidates[side]
    if same_text(text, original.text or ""):
        raise ApiError(422, "nothing_edited", "The edited reply equals the original. Change it, or choose a reply.")
    edited = _store(session, shown, original, text, rater.id)
    session.add(
        t.Comparison(
            pair_id=edited.pair_id,
            rater_id=rater.id,
            side=edited.side,
            source_value={"edit_of_pair": pair_id, "edit_of_candidate": original.id},
            decided_at=datetime.now(UTC),
        )
    )
    session.flush()
    return _goes_on(session, shown, edited.id, text), True


def _store(session: Session, shown: t.Pair, original: t.Candidate, text: str, rater_id: int) -> t.Candidate:
    """The pair of edit and original, both complete, on random sides."""
    stands = t.Pair(
        dialogue_id=shown.dialogue_id,
        parent_id=shown.parent_id,
        question=shown.question,
        purpose="training",
        instruction_version=current(session, shown.question).version,  # type: ignore[arg-type]
        edit_of_id=shown.id,
    )
    session.add(stands)
    session.flush()
    sides = list(SIDES)
    _random.shuffle(sides)
    now = datetime.now(UTC)
    edited = t.Candidate(
        pair_id=stands.id, side=sides[0], contestant=CONTESTANT, written_by_id=rater_id, text=text, completed_at=now
    )
    copy = t.Candidate(
        pair_id=stands.id,
        side=sides[1],
        snapshot_id=original.snapshot_id,
        deployment_id=original.deployment_id,
        contestant=original.contestant,
        contestant_id=original.contestant_id,
        written_by_id=original.written_by_id,
        details=original.details,
        sampling=original.sampling,
        seed=original.seed,
        text=original.text,
        reply_tokens=original.reply_tokens,
        truncated=original.truncated,
        completed_at=now,
    )
    session.add_all([edited, copy])
    session.flush()
    return edited


def _goes_on(session: Session, shown: t.Pair, candidate_id: int, text: str) -> int:
    return continue_with(session, shown.dialogue_id, shown.parent_id, candidate_id, text)
