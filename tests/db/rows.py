"""Rows for tests of the database side: one call per thing a person or the loop would have made."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from db import tables as t
from db.split import split_key

_numbers = itertools.count(1)
NOW = datetime(2026, 1, 5, tzinfo=UTC)


def add_rater(session: Session, handle: str | None = None) -> t.Rater:
    """A synthetic rater."""
    rater = t.Rater(handle=handle or f"rater-{next(_numbers)}", kind="synthetic")
    session.add(rater)
    session.flush()
    return rater


def add_cycle(
    session: Session, state: str = "open", config: dict[str, Any] | None = None, name: str = "test"
) -> t.Cycle:
    """A cycle; give the last one a closed state before the next is opened."""
    cycle = t.Cycle(number=next(_numbers), name=name, config=config or {}, state=state)
    cycle.ended_at = None if state == "open" else NOW
    session.add(cycle)
    session.flush()
    return cycle


def close(session: Session, cycle: t.Cycle) -> None:
    """Promote what the cycle made."""
    cycle.state, cycle.ended_at = "promoted", NOW
    session.flush()


def add_artifact(session: Session, kind: str = "snapshot", **fields: Any) -> t.Artifact:
    """An artifact row with a digest of its own."""
    number = next(_numbers)
    given = {"fingerprint": f"{number:064x}", "digest": f"sha256:{number:064x}", "settings": {}, "results": {}}
    artifact = t.Artifact(kind=kind, num_bytes=1, **(given | fields))
    session.add(artifact)
    session.flush()
    return artifact


def add_dialogue(session: Session, *texts: str, **fields: Any) -> tuple[t.Dialogue, list[t.Message]]:
    """A dialogue whose messages alternate, user first, each the child of the one before."""
    given = {"source": "feedback", "tranche": "online", "task": "helpful", "split_key": split_key(texts[0])}
    dialogue = t.Dialogue(**(given | fields))
    session.add(dialogue)
    session.flush()
    messages: list[t.Message] = []
    for place, content in enumerate(texts):
        message = t.Message(
            dialogue_id=dialogue.id,
            parent_id=messages[-1].id if messages else None,
            role="assistant" if place % 2 else "user",
            content=content,
        )
        session.add(message)
        session.flush()
        messages.append(message)
    return dialogue, messages


def add_pair(
    session: Session, parent: t.Message, a: str = "reply a", b: str = "reply b", *, complete: bool = True, **fields: Any
) -> tuple[t.Pair, t.Candidate, t.Candidate]:
    """A pair under a message, with its two candidates; `fields` of the pair, or prefixed `a_` and `b_` of a side."""
    sides = {side: {k[2:]: v for k, v in fields.items() if k[:2] == f"{side}_"} for side in "ab"}
    given = {key: value for key, value in fields.items() if key[:2] not in ("a_", "b_")}
    pair = t.Pair(dialogue_id=parent.dialogue_id, parent_id=parent.id, **({"question": "helpful"} | given))
    session.add(pair)
    session.flush()
    candidates = []
    for side, text in (("a", a), ("b", b)):
        filled = {"text": text, "completed_at": NOW} if complete else {}
        candidates.append(t.Candidate(pair_id=pair.id, side=side, **filled, **sides[side]))
    session.add_all(candidates)
    session.flush()
    return pair, candidates[0], candidates[1]


def add_comparison(
    session: Session,
    opening: str = "Hello?",
    *,
    rater: t.Rater | None = None,
    pair: t.Pair | None = None,
    a: str = "reply a",
    b: str = "reply b",
    side: str = "a",
    dialogue: dict[str, Any] | None = None,
    pair_fields: dict[str, Any] | None = None,
    **fields: Any,
) -> t.Comparison:
    """A comparison, with a dialogue of one message and a pair of its own where none is given."""
    if pair is None:
        _, messages = add_dialogue(session, opening, **(dialogue or {}))
        pair, _, _ = add_pair(session, messages[-1], a, b, **(pair_fields or {}))
    rater = rater or add_rater(session)
    comparison = t.Comparison(pair_id=pair.id, rater_id=rater.id, side=side, **fields)
    session.add(comparison)
    session.flush()
    return comparison
