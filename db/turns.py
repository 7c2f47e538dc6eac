"""The statements of every turn, built once: building one costs more than running it. Parameters are given by name."""

from __future__ import annotations

from sqlalchemy import BigInteger, bindparam, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session, aliased

from db import tables as t
from db import turns

DIALOGUES = t.Base.metadata.tables["dialogues"]
MESSAGES = t.Base.metadata.tables["messages"]
PAIRS = t.Base.metadata.tables["pairs"]
CANDIDATES = t.Base.metadata.tables["candidates"]
COMPARISONS = t.Base.metadata.tables["comparisons"]

# Inserts that give no row where the same thing is there already; the values are the parameters.
ADD_DIALOGUE = (
    insert(DIALOGUES).on_conflict_do_nothing(index_elements=["rater_id", "client_key"]).returning(DIALOGUES.c.id)
)
ADD_MESSAGE = (
    insert(MESSAGES).on_conflict_do_nothing(index_elements=["dialogue_id", "client_key"]).returning(MESSAGES.c.id)
)
CONTINUE_WITH = insert(MESSAGES).on_conflict_do_nothing(index_elements=["candidate_id"]).returning(MESSAGES.c.id)
ADD_PAIR = insert(PAIRS).on_conflict_do_nothing(index_elements=["dialogue_id", "client_key"]).returning(PAIRS.c.id)
ADD_COMPARISON = (
    insert(COMPARISONS)
    .values(decided_at=func.clock_timestamp())
    .on_conflict_do_nothing(index_elements=["pair_id", "rater_id"])
    .returning(COMPARISONS.c.id)
)
ADD_CANDIDATES = insert(CANDIDATES).returning(CANDIDATES.c.id, CANDIDATES.c.side)

# A dialogue, held against other writers of the same dialogue until the end of the transaction.
LOCK_DIALOGUE = (
    select(t.Dialogue.rater_id, t.Dialogue.ended_at, t.Dialogue.split_key)
    .where(t.Dialogue.id == bindparam("dialogue_id"))
    .with_for_update(key_share=True)
)
SET_SPLIT_KEY = update(DIALOGUES).where(DIALOGUES.c.id == bindparam("dialogue_id")).values(split_key=bindparam("key"))

# The role of a message of this dialogue.
ROLE = select(t.Message.role).where(
    t.Message.id == bindparam("message_id"), t.Message.dialogue_id == bindparam("dialogue_id")
)

# A message with its dialogue, and the pair that the client key names there, if any.
_earlier = aliased(t.Pair)
ASKED = (
    select(
        t.Message.role,
        t.Message.dialogue_id,
        t.Dialogue.rater_id,
        t.Dialogue.ended_at,
        t.Dialogue.task,
        t.Dialogue.question,
        _earlier.id.label("pair_id"),
        _earlier.parent_id,
    )
    .join(t.Dialogue, t.Dialogue.id == t.Message.dialogue_id)
    .outerjoin(
        _earlier,
        (_earlier.dialogue_id == t.Message.dialogue_id) & (_earlier.client_key == bindparam("client_key")),
    )
    .where(t.Message.id == bindparam("message_id"))
)

# A pair with its rater, candidates, digests and contestants, and the rater's comparison: one row per candidate, side a
# first.
PAIR = (
    select(t.Pair, t.Dialogue.rater_id, t.Candidate, t.Artifact.digest, t.Comparison, t.Contestant)
    .join(t.Dialogue, t.Dialogue.id == t.Pair.dialogue_id)
    .join(t.Candidate, t.Candidate.pair_id == t.Pair.id)
    .outerjoin(t.Artifact, t.Artifact.id == t.Candidate.snapshot_id)
    .outerjoin(t.Contestant, t.Contestant.id == t.Candidate.contestant_id)
    .outerjoin(t.Comparison, (t.Comparison.pair_id == t.Pair.id) & (t.Comparison.rater_id == t.Dialogue.rater_id))
    .where(t.Pair.id == bindparam("pair_id"))
    .order_by(t.Candidate.side)
)

# The messages from one up to the opening, this one first, and the dialogue's system message.
_path = (
    select(t.Message.id, t.Message.parent_id, t.Message.role, t.Message.content, t.Message.dialogue_id)
    .add_columns(literal(0).label("depth"))
    .where(t.Message.id == bindparam("message_id"))
    .cte("path", recursive=True)
)
_parent = aliased(t.Message)
_path = _path.union_all(
    select(_parent.id, _parent.parent_id, _parent.role, _parent.content, _parent.dialogue_id, _path.c.depth + 1).where(
        _parent.id == _path.c.parent_id
    )
)
PATH = (
    select(_path.c.role, _path.c.content, t.Dialogue.system)
    .join(t.Dialogue, t.Dialogue.id == _path.c.dialogue_id)
    .order_by(_path.c.depth)
)

# A pair with its rater, one of its candidates, and how many of its texts are there.
_chosen, _edit = aliased(t.Candidate), aliased(t.Pair)
CHOSEN = (
    select(
        t.Pair.parent_id,
        t.Pair.dialogue_id,
        t.Dialogue.rater_id,
        t.Dialogue.ended_at,
        _chosen.id.label("chosen_id"),
        _chosen.text,
        select(func.count(t.Candidate.text))
        .where(t.Candidate.pair_id == t.Pair.id)
        .scalar_subquery()
        .label("num_texts"),
        exists().where(_edit.edit_of_id == t.Pair.id).label("edited"),
    )
    .join(t.Dialogue, t.Dialogue.id == t.Pair.dialogue_id)
    .join(_chosen, (_chosen.pair_id == t.Pair.id) & (_chosen.side == bindparam("side")))
    .where(t.Pair.id == bindparam("pair_id"))
)

# Write a candidate's text, unless it has one.
COMPLETE = (
    update(CANDIDATES)
    .where(CANDIDATES.c.id == bindparam("candidate_id", type_=BigInteger), CANDIDATES.c.text.is_(None))
    .values(
        text=bindparam("reply"),
        reply_tokens=bindparam("num_tokens"),
        truncated=bindparam("cut_off"),
        details=bindparam("told", type_=JSONB(none_as_null=True)),
        written_by_id=bindparam("writer_id", type_=BigInteger),
        completed_at=func.clock_timestamp(),
    )
    .returning(CANDIDATES.c.text)
)
STORED_TEXT = select(CANDIDATES.c.text).where(CANDIDATES.c.id == bindparam("candidate_id"))


def prompt_of(session: Session, message_id: int) -> list[dict[str, str]]:
    """The messages from the opening to this one, with the dialogue's system message before them if it has one."""
    rows = session.execute(turns.PATH, {"message_id": message_id}).all()
    system = [{"role": "system", "content": rows[0].system}] if rows[0].system is not None else []
    return system + [{"role": row.role, "content": row.content} for row in reversed(rows)]
