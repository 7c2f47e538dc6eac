"""People who were forgotten: that it happened, which comparisons it took, and which artifacts were written anew."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id


class Erasure(Base):
    """A rater's texts and identity are blanked, by command or at the desk. Only `completed_at` is set later.

    Until then it is under way, and the same command, or the desk, goes on with it.
    """

    __tablename__ = "erasures"
    __table_args__ = (UniqueConstraint("rater_id"),)

    id: Mapped[Id]
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    note: Mapped[str]
    """Who asked for it and how, in the operator's words; it must not name the person."""
    created_at: Mapped[CreatedAt]
    completed_at: Mapped[datetime | None]


class ErasedComparison(Base):
    """A comparison of which text is gone, whoever made it; no comparison set that is built from now on has it."""

    __tablename__ = "erased_comparisons"

    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"), primary_key=True)
    erasure_id: Mapped[int] = mapped_column(ForeignKey("erasures.id"))


class ErasedArtifact(Base):
    """An artifact that held text of theirs: written anew without it, under another digest. Append-only."""

    __tablename__ = "erased_artifacts"
    __table_args__ = (UniqueConstraint("digest", "erasure_id", name="uq_erased_artifacts_digest"),)

    id: Mapped[Id]
    digest: Mapped[str]
    """What it was published as. Its files are no longer in the store."""
    erasure_id: Mapped[int] = mapped_column(ForeignKey("erasures.id"))
    rewritten_digest: Mapped[str]
    """Where what is left of it lies."""
    num_comparisons: Mapped[int]
    num_records: Mapped[int]
    """Other records whose text was blanked: prompts, and replies to them."""
    created_at: Mapped[CreatedAt]
