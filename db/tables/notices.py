"""What the desk says to raters, and raters to the desk."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id


class Announcement(Base):
    """Something every rater reads above their tasks. Only `ended_at` is set later."""

    __tablename__ = "announcements"
    __table_args__ = (Index("ix_announcements_current", "id", postgresql_where=text("ended_at is null")),)

    id: Mapped[Id]
    content: Mapped[str]
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class ProblemReport(Base):
    """What a rater found wrong: with the page, a task, a reply. Only `handled_at` is set later."""

    __tablename__ = "problem_reports"
    __table_args__ = (
        UniqueConstraint("rater_id", "client_key"),
        Index("ix_problem_reports_dialogue_id", "dialogue_id"),
        Index("ix_problem_reports_open", "id", postgresql_where=text("handled_at is null")),
    )

    id: Mapped[Id]
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    dialogue_id: Mapped[int | None] = mapped_column(ForeignKey("dialogues.id"))
    """The dialogue from which it was reported."""
    client_key: Mapped[str]
    """The form's; sent twice it is one report."""
    content: Mapped[str]
    created_at: Mapped[CreatedAt]
    handled_at: Mapped[datetime | None]
