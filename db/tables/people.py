"""Raters, and the files that brought comparisons from elsewhere."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id


class Rater(Base):
    """Who compares. Written by `orchestrator rater add` and by imports; only `status` and the token change."""

    __tablename__ = "raters"
    __table_args__ = (
        UniqueConstraint("handle"),
        UniqueConstraint("token_digest"),
        CheckConstraint("kind in ('human', 'synthetic', 'imported', 'model')", name="kind"),
        CheckConstraint("status in ('select', 'normal', 'banned', 'withdrawn')", name="status"),
    )

    id: Mapped[Id]
    handle: Mapped[str]
    """Unique name; an imported rater is `<source>/<name>`, the anonymous one of a source `<source>/anonymous`."""
    kind: Mapped[str]
    platform: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="normal")
    token_digest: Mapped[str | None]
    """SHA-256 (hex) of the token; the token itself is shown once and never stored."""
    created_at: Mapped[CreatedAt]


class Withdrawal(Base):
    """A rater's comparisons are to be in no comparison set frozen from now on. Append-only."""

    __tablename__ = "withdrawals"
    __table_args__ = (UniqueConstraint("rater_id"),)

    id: Mapped[Id]
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    note: Mapped[str]
    """Who asked for it and how, in the operator's words."""
    created_at: Mapped[CreatedAt]


class Import(Base):
    """One run of `orchestrator import` over one file, written in the same transaction as its rows."""

    __tablename__ = "imports"
    __table_args__ = (
        CheckConstraint("num_read = num_imported + num_already_there + num_quarantined", name="counts_add_up"),
        CheckConstraint("split in ('held_out')", name="split"),
    )

    id: Mapped[Id]
    file_name: Mapped[str]
    file_digest: Mapped[str]
    source: Mapped[str]
    format: Mapped[str]
    split: Mapped[str | None]
    num_read: Mapped[int]
    num_imported: Mapped[int]
    num_already_there: Mapped[int]
    num_quarantined: Mapped[int]
    started_at: Mapped[datetime]
    ended_at: Mapped[CreatedAt]


class QuarantinedRecord(Base):
    """A record that could not be imported, whole, with the reason. Never deleted by the product."""

    __tablename__ = "quarantined_records"
    __table_args__ = (
        UniqueConstraint("source", "record_digest", "ordinal", name="uq_quarantined_records_record"),
        Index("ix_quarantined_records_import_id", "import_id"),
    )

    id: Mapped[Id]
    import_id: Mapped[int] = mapped_column(ForeignKey("imports.id"))
    source: Mapped[str]
    line: Mapped[int]
    reason: Mapped[str]
    """Reason code, e.g. `identical_replies`, `prompts_differ`, `repeat`; listed in docs/reference/formats.md."""
    detail: Mapped[str]
    record: Mapped[str]
    record_digest: Mapped[str]
    ordinal: Mapped[int] = mapped_column(server_default=text("0"))
    """Which occurrence of an identical record in the file, so that twin records are both kept."""
    extra: Mapped[dict[str, Any] | None]
    created_at: Mapped[CreatedAt]
