"""How people come in: invitations, sessions in a browser, what they agreed to, and visits from outside platforms."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id


class Invitation(Base):
    """A link that makes whoever opens it a rater. Written by `orchestrator invite`; only `ended_at` is set later."""

    __tablename__ = "invitations"
    __table_args__ = (
        UniqueConstraint("token_digest"),
        CheckConstraint("max_uses > 0", name="max_uses"),
    )

    id: Mapped[Id]
    token_digest: Mapped[str]
    """SHA-256 (hex) of the link's secret; the link itself is shown once and never stored."""
    label: Mapped[str]
    """Whom it is for, in the operator's words."""
    platform: Mapped[str | None]
    max_uses: Mapped[int | None]
    """How many raters may join by it; NULL is any number."""
    expires_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class InvitationUse(Base):
    """A rater who joined by an invitation. Append-only."""

    __tablename__ = "invitation_uses"
    __table_args__ = (Index("ix_invitation_uses_invitation_id", "invitation_id"),)

    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"), primary_key=True)
    invitation_id: Mapped[int] = mapped_column(ForeignKey("invitations.id"))
    created_at: Mapped[CreatedAt]


class RaterSession(Base):
    """A browser in which a rater is signed in. Only `ended_at` is set later."""

    __tablename__ = "rater_sessions"
    __table_args__ = (
        UniqueConstraint("token_digest"),
        Index("ix_rater_sessions_rater_id", "rater_id"),
    )

    id: Mapped[Id]
    token_digest: Mapped[str]
    """SHA-256 (hex) of the cookie's value."""
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class Consent(Base):
    """A rater read one version of a task's instructions and agreed to take part. Append-only."""

    __tablename__ = "consents"
    __table_args__ = (UniqueConstraint("rater_id", "instruction_version"),)

    id: Mapped[Id]
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    instruction_version: Mapped[str]
    created_at: Mapped[CreatedAt]


class Study(Base):
    """A study on an outside platform whose people are sent here. Only `ended_at` is set later."""

    __tablename__ = "studies"
    __table_args__ = (
        UniqueConstraint("platform", "external_id"),
        CheckConstraint("platform in ('prolific', 'mturk')", name="platform"),
        CheckConstraint("num_comparisons > 0", name="num_comparisons"),
    )

    id: Mapped[Id]
    platform: Mapped[str]
    external_id: Mapped[str]
    """The platform's id of the study (Prolific) or HIT type (MTurk), as its URLs name it."""
    completion_code: Mapped[str]
    """What the platform pays for; shown to a visitor after `num_comparisons`."""
    num_comparisons: Mapped[int]
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class Visit(Base):
    """One submission of one person to a study. Only `completed_at` is set later."""

    __tablename__ = "visits"
    __table_args__ = (
        UniqueConstraint("study_id", "external_id"),
        Index("ix_visits_rater_id", "rater_id"),
    )

    id: Mapped[Id]
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    external_id: Mapped[str]
    """The platform's id of the submission (Prolific: SESSION_ID; MTurk: assignmentId)."""
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    created_at: Mapped[CreatedAt]
    completed_at: Mapped[datetime | None]


class ApiKey(Base):
    """A program's way to the policy server. Written by `orchestrator key add`; only `ended_at` is set later."""

    __tablename__ = "api_keys"
    __table_args__ = (
        UniqueConstraint("name"),
        UniqueConstraint("key_digest"),
        CheckConstraint("requests_per_minute > 0", name="requests_per_minute"),
    )

    id: Mapped[Id]
    name: Mapped[str]
    """Which program has it; never used twice, so that logs stay unambiguous."""
    key_digest: Mapped[str]
    """SHA-256 (hex) of the key; the key itself is shown once and never stored."""
    requests_per_minute: Mapped[int | None]
    """NULL: what the policy server allows by default."""
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]
