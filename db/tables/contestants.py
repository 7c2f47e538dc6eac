"""Who can answer raters: contestants, and the pairing table that says which of them meet."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id
from db.tables.dialogues import TASKS


class Contestant(Base):
    """Something that answers a rater's message. Written when it first enters the pairing table. Append-only."""

    __tablename__ = "contestants"
    __table_args__ = (
        CheckConstraint("kind in ('policy', 'best_of', 'endpoint', 'writer')", name="kind"),
        CheckConstraint("(kind in ('policy', 'best_of')) = (snapshot_id is not null)", name="snapshot"),
        CheckConstraint(
            "(kind = 'best_of') = (preference_model_id is not null) and (kind = 'best_of') = (k is not null)",
            name="best_of",
        ),
        CheckConstraint("k between 2 and 64", name="k"),
        CheckConstraint(
            "(kind = 'endpoint') = (url is not null) and (kind = 'endpoint') = (model is not null) "
            "and (key_variable is null or kind = 'endpoint')",
            name="endpoint",
        ),
        CheckConstraint("(kind = 'writer') = (group_id is not null)", name="writer"),
        UniqueConstraint("name"),
        Index("uq_contestants_policy", "snapshot_id", unique=True, postgresql_where=text("kind = 'policy'")),
    )

    id: Mapped[Id]
    name: Mapped[str]
    """The digest of a policy; of all others the name that the operator gave."""
    kind: Mapped[str]
    """`policy`: a snapshot as it is; `best_of`: the best of its k replies by a preference model; `endpoint`: an outside
    OpenAI-compatible model; `writer`: a person of a group."""
    snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("artifacts.id"))
    preference_model_id: Mapped[int | None] = mapped_column(ForeignKey("artifacts.id"))
    k: Mapped[int | None]
    url: Mapped[str | None]
    """Base URL of an endpoint, with its /v1."""
    model: Mapped[str | None]
    key_variable: Mapped[str | None]
    """Name of the environment variable that holds the endpoint's API key; the key itself is never stored."""
    group_id: Mapped[int | None] = mapped_column(ForeignKey("rater_groups.id"))
    created_at: Mapped[CreatedAt]


class Pairing(Base):
    """A row of the pairing table: which contestants meet in a task, with what weight. Only `ended_at` changes."""

    __tablename__ = "pairings"
    __table_args__ = (
        CheckConstraint(f"task in {TASKS}", name="task"),
        CheckConstraint("weight > 0", name="weight"),
        Index("ix_pairings_active", "task", postgresql_where=text("ended_at is null")),
    )

    id: Mapped[Id]
    task: Mapped[str]
    contestant_a_id: Mapped[int] = mapped_column(ForeignKey("contestants.id"))
    contestant_b_id: Mapped[int] = mapped_column(ForeignKey("contestants.id"))
    weight: Mapped[float] = mapped_column(server_default=text("1"))
    cycle_id: Mapped[int | None] = mapped_column(ForeignKey("cycles.id"))
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]
