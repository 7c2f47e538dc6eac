"""Dialogues as trees of messages, the pairs shown to raters, and what they chose.

Rows are append-only wherever a person acted: triggers in the migrations refuse UPDATE and DELETE, except
that a candidate's text is filled once, at completion, and a dialogue is ended once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id

TASKS = "('helpful', 'red_team', 'red_team_choose_best', 'model_comparison', 'import')"
QUESTIONS = "('helpful', 'harmless', 'more_harmful')"


class Dialogue(Base):
    """One conversation. Written when a rater begins, or by an import; only `ended_at` is set later."""

    __tablename__ = "dialogues"
    __table_args__ = (
        CheckConstraint(f"task in {TASKS}", name="task"),
        CheckConstraint("tranche in ('base', 'rs', 'online', 'imported')", name="tranche"),
        CheckConstraint("pinned_split in ('held_out')", name="pinned_split"),
        CheckConstraint(f"question in {QUESTIONS}", name="question"),
        UniqueConstraint("identity_digest"),
        UniqueConstraint("rater_id", "client_key"),
        Index("ix_dialogues_split_key", "split_key"),
        Index("ix_dialogues_pinned", "split_key", postgresql_where=text("pinned_split is not null")),
    )

    id: Mapped[Id]
    source: Mapped[str]
    """`feedback` for our own page, else the name of the imported set."""
    tranche: Mapped[str]
    task: Mapped[str]
    question: Mapped[str | None]
    """What its pairs will ask, fixed when a rater begins; NULL for imports, whose pairs say it each."""
    rater_id: Mapped[int | None] = mapped_column(ForeignKey("raters.id"))
    external_id: Mapped[str | None]
    identity_digest: Mapped[str | None]
    """Digest of the canonical content of an imported dialogue; NULL for our own."""
    split_key: Mapped[str | None]
    """Digest of the normalised opening message (`db.split.split_key`); set with the first message."""
    pinned_split: Mapped[str | None]
    """`held_out` where the file was imported with `--split held_out`; wins over the hash for its key."""
    system: Mapped[str | None]
    client_key: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class Message(Base):
    """One turn. A tree: a pair's two replies may both have continuations. Append-only."""

    __tablename__ = "messages"
    __table_args__ = (
        CheckConstraint("role in ('system', 'user', 'assistant')", name="role"),
        UniqueConstraint("dialogue_id", "client_key"),
        UniqueConstraint("candidate_id"),
        # A parent lies in the same dialogue; the pair (id, dialogue_id) makes the database hold that.
        UniqueConstraint("id", "dialogue_id", name="uq_messages_id_dialogue_id"),
        ForeignKeyConstraint(["parent_id", "dialogue_id"], ["messages.id", "messages.dialogue_id"]),
        Index("ix_messages_dialogue_id", "dialogue_id"),
        Index("ix_messages_parent_id", "parent_id"),
    )

    id: Mapped[Id]
    dialogue_id: Mapped[int] = mapped_column(ForeignKey("dialogues.id"))
    parent_id: Mapped[int | None]
    role: Mapped[str]
    content: Mapped[str]
    candidate_id: Mapped[int | None] = mapped_column(
        ForeignKey("candidates.id", use_alter=True, name="fk_messages_candidate_id_candidates")
    )
    """The candidate that became this message, where the dialogue went on from one."""
    client_key: Mapped[str | None]
    """Chosen by the client, so that a double click or a retry is the same message."""
    created_at: Mapped[CreatedAt]


class Pair(Base):
    """Two candidates side by side under one message. Written before the first token is sampled. Append-only."""

    __tablename__ = "pairs"
    __table_args__ = (
        CheckConstraint(f"question in {QUESTIONS}", name="question"),
        CheckConstraint("purpose in ('training', 'evaluation')", name="purpose"),
        UniqueConstraint("dialogue_id", "client_key"),
        UniqueConstraint("identity_digest"),
        ForeignKeyConstraint(["parent_id", "dialogue_id"], ["messages.id", "messages.dialogue_id"]),
        Index("ix_pairs_dialogue_id", "dialogue_id"),
        Index("ix_pairs_parent_id", "parent_id"),
        UniqueConstraint("edit_of_id"),
    )

    id: Mapped[Id]
    dialogue_id: Mapped[int] = mapped_column(ForeignKey("dialogues.id"))
    parent_id: Mapped[int]
    """The user message that both candidates answer."""
    question: Mapped[str]
    """What the rater is asked: which is more `helpful`, more `harmless`, or `more_harmful` (flipped for training)."""
    purpose: Mapped[str] = mapped_column(server_default="training")
    """`evaluation` pairs (model comparisons for Elo) never enter a comparison set."""
    instruction_version: Mapped[str | None]
    pairing_id: Mapped[int | None] = mapped_column(ForeignKey("pairings.id"))
    edit_of_id: Mapped[int | None] = mapped_column(
        ForeignKey("pairs.id", use_alter=True, name="fk_pairs_edit_of_id_pairs")
    )
    """The pair in whose place this one stands: the rater wrote a better reply than one of its two. An edited pair takes
    no comparison of its own."""
    client_key: Mapped[str | None]
    identity_digest: Mapped[str | None]
    created_at: Mapped[CreatedAt]


class Candidate(Base):
    """One side of a pair: which weights, sampling settings and seed; its text is written once, at completion."""

    __tablename__ = "candidates"
    __table_args__ = (
        CheckConstraint("side in ('a', 'b')", name="side"),
        CheckConstraint("(text is null) = (completed_at is null)", name="complete"),
        UniqueConstraint("pair_id", "side"),
        Index("ix_candidates_snapshot_id", "snapshot_id"),
        Index(
            "ix_candidates_to_write",
            "contestant_id",
            postgresql_where=text("text is null and contestant_id is not null"),
        ),
    )

    id: Mapped[Id]
    pair_id: Mapped[int] = mapped_column(ForeignKey("pairs.id"))
    side: Mapped[str]
    snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("artifacts.id"))
    deployment_id: Mapped[int | None] = mapped_column(ForeignKey("deployments.id"))
    contestant: Mapped[str | None]
    """Name of an imported or outside model, of a group of writers, or `edit`, where the weights are not ours."""
    contestant_id: Mapped[int | None] = mapped_column(ForeignKey("contestants.id"))
    """Whose reply it is, where that is not just a snapshot's own: best-of-k, an outside endpoint, a writer."""
    history: Mapped[list[Any] | None]
    """Messages between the pair's parent and this reply, where a source gives each side its own (MT-bench turn 2)."""
    sampling: Mapped[dict[str, Any] | None]
    seed: Mapped[int | None]
    text: Mapped[str | None]
    reply_tokens: Mapped[int | None]
    truncated: Mapped[bool | None]
    written_by_id: Mapped[int | None] = mapped_column(ForeignKey("raters.id"))
    """The person who wrote it, where a person did."""
    details: Mapped[dict[str, Any] | None]
    """What its contestant reported at completion: the scores of best-of-k, the model that an endpoint names."""
    created_at: Mapped[CreatedAt]
    completed_at: Mapped[datetime | None]


class Comparison(Base):
    """A rater's answer to a pair. Append-only. A trigger queues each new row in `fresh_comparisons`."""

    __tablename__ = "comparisons"
    __table_args__ = (
        CheckConstraint("side in ('a', 'b', 'none')", name="side"),
        CheckConstraint("(side = 'none') = (reason is not null) and reason in ('cant_tell', 'tie')", name="reason"),
        CheckConstraint("strength between 1 and 4", name="strength"),
        CheckConstraint("side <> 'none' or strength is null", name="strength_of_none"),
        CheckConstraint("label_kind in ('human', 'model')", name="label_kind"),
        UniqueConstraint("pair_id", "rater_id"),
        Index("ix_comparisons_rater_id", "rater_id"),
        # For what happened since a moment; a comparison's time is close to the order of its row, so this is tiny.
        Index("ix_comparisons_created_at", "created_at", postgresql_using="brin"),
    )

    id: Mapped[Id]
    pair_id: Mapped[int] = mapped_column(ForeignKey("pairs.id"))
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    side: Mapped[str]
    reason: Mapped[str | None]
    """Only for side `none`: `cant_tell` and `tie` are kept apart."""
    strength: Mapped[int | None]
    """1 (slight) to 4 (strong); NULL is unknown and passes every threshold."""
    label_kind: Mapped[str] = mapped_column(server_default="human")
    source_value: Mapped[dict[str, Any] | None]
    """The source's own fields beside the text, so that an export loses nothing."""
    duration_ms: Mapped[int | None]
    decided_at: Mapped[datetime | None]
    import_id: Mapped[int | None] = mapped_column(ForeignKey("imports.id"))
    created_at: Mapped[CreatedAt]


class FreshComparison(Base):
    """Queue of comparisons that no freeze has taken yet. Filled by a trigger, emptied by the freeze.

    A row becomes visible with the commit of its comparison, so whatever commits after a freeze is in the next one:
    ids and times, which are not in commit order, play no part.
    """

    __tablename__ = "fresh_comparisons"

    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"), primary_key=True)


class Freeze(Base):
    """The moment a cycle took the comparisons it will learn from. One per cycle. Append-only."""

    __tablename__ = "freezes"
    __table_args__ = (UniqueConstraint("cycle_id"),)

    id: Mapped[Id]
    cycle_id: Mapped[int] = mapped_column(ForeignKey("cycles.id"))
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("freezes.id"))
    num_fresh: Mapped[int]
    cut_off: Mapped[CreatedAt]


class FrozenComparison(Base):
    """Which freeze took a comparison: one row per run of comparisons with successive ids. Append-only.

    The exclusion constraint lets no comparison belong to two freezes. Runs, because a row and its index entries per
    comparison would cost more than everything else that a freeze does.
    """

    __tablename__ = "frozen_comparisons"
    __table_args__ = (
        CheckConstraint("first_id <= last_id", name="order"),
        ExcludeConstraint((text("int8range(first_id, last_id, '[]')"), "&&"), name="ex_frozen_comparisons_run"),
    )

    freeze_id: Mapped[int] = mapped_column(ForeignKey("freezes.id"), primary_key=True)
    first_id: Mapped[int] = mapped_column(primary_key=True)
    last_id: Mapped[int]


class FrozenWithdrawal(Base):
    """Which freeze was the first to heed a withdrawal; it and all later ones leave the rater out. Append-only.

    So the set of an earlier freeze stays the same whenever it is built.
    """

    __tablename__ = "frozen_withdrawals"
    __table_args__ = (Index("ix_frozen_withdrawals_freeze_id", "freeze_id"),)

    withdrawal_id: Mapped[int] = mapped_column(ForeignKey("withdrawals.id"), primary_key=True)
    freeze_id: Mapped[int] = mapped_column(ForeignKey("freezes.id"))
