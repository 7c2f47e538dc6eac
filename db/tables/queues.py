"""Who may do what: groups of raters, and queues of work that are open to some of them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id


class RaterGroup(Base):
    """Raters that are given work together. Written by `orchestrator group add`. Append-only."""

    __tablename__ = "rater_groups"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[Id]
    name: Mapped[str]
    created_at: Mapped[CreatedAt]


class GroupMembership(Base):
    """The time that a rater spends in a group. Only `ended_at` is set later; who comes back has a new row."""

    __tablename__ = "group_memberships"
    __table_args__ = (
        Index(
            "uq_group_memberships_now", "rater_id", "group_id", unique=True, postgresql_where=text("ended_at is null")
        ),
        Index("ix_group_memberships_group_id", "group_id"),
    )

    id: Mapped[Id]
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    group_id: Mapped[int] = mapped_column(ForeignKey("rater_groups.id"))
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class Queue(Base):
    """A kind of work open to some raters. Written by `orchestrator queue add`; only `ended_at` is set later."""

    __tablename__ = "queues"
    __table_args__ = (
        CheckConstraint("rater_status in ('select', 'normal')", name="rater_status"),
        CheckConstraint("weight > 0", name="weight"),
        CheckConstraint("goal > 0", name="goal"),
    )

    id: Mapped[Id]
    task: Mapped[str]
    question: Mapped[str]
    group_id: Mapped[int | None] = mapped_column(ForeignKey("rater_groups.id"))
    """NULL: open to raters of any group and of none."""
    rater_status: Mapped[str | None]
    """NULL: open to select and normal raters alike."""
    weight: Mapped[int] = mapped_column(server_default=text("1"))
    """The heavier, the higher on the rater's page."""
    goal: Mapped[int | None]
    """Comparisons since the queue was opened after which it offers nothing more; NULL is no end."""
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]
