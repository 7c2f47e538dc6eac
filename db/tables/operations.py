"""Steering: who may decide, what waits for them, what they did, and how far the work is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id


class InstanceIdentity(Base):
    """What this database is known by: one row, made by the migration. A Prefect server proves by it whose it is."""

    __tablename__ = "instance_identity"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[CreatedAt]


class CycleRun(Base):
    """A Prefect flow run that worked on a cycle. Written when the run takes the cycle up. Append-only."""

    __tablename__ = "cycle_runs"
    __table_args__ = (Index("ix_cycle_runs_flow_run_id", "flow_run_id"),)

    cycle_id: Mapped[int] = mapped_column(ForeignKey("cycles.id"), primary_key=True)
    flow_run_id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[CreatedAt]


class StageProgress(Base):
    """How far a stage's job is, as its worker last told. Only the newest is kept."""

    __tablename__ = "stage_progress"

    stage_id: Mapped[int] = mapped_column(ForeignKey("stages.id"), primary_key=True, autoincrement=False)
    phase: Mapped[str]
    step: Mapped[int]
    steps: Mapped[int | None]
    """NULL where the job can't know how many there will be."""
    eta_s: Mapped[float | None]
    told_at: Mapped[CreatedAt]


class StageMetrics(Base):
    """A line of `metrics.jsonl` of a stage's job. Written by its worker while the job runs. Append-only."""

    __tablename__ = "stage_metrics"

    stage_id: Mapped[int] = mapped_column(ForeignKey("stages.id"), primary_key=True, autoincrement=False)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Its place in the file, from 0."""
    numbers: Mapped[dict[str, Any]]
    created_at: Mapped[CreatedAt]


class Approval(Base):
    """A promotion that waits for a person, with the evidence. Decided once its decision is there. Append-only."""

    __tablename__ = "approvals"
    __table_args__ = (UniqueConstraint("cycle_id", "snapshot_id"),)

    id: Mapped[Id]
    cycle_id: Mapped[int] = mapped_column(ForeignKey("cycles.id"))
    snapshot_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"))
    why: Mapped[str]
    """Why a person is asked: the configuration wants it, or fresh comparisons contradict the preference model."""
    reasons: Mapped[list[Any]]
    """What the gates said, as on a decision."""
    evidence: Mapped[dict[str, Any]]
    expires_at: Mapped[datetime]
    """When it is refused because nobody decided."""
    created_at: Mapped[CreatedAt]


class Operator(Base):
    """A person at the desk, with a token of their own. Only the token and `ended_at` change."""

    __tablename__ = "operators"
    __table_args__ = (UniqueConstraint("name"), UniqueConstraint("token_digest"))

    id: Mapped[Id]
    name: Mapped[str]
    """Stands on what they did, so a name is given once."""
    token_digest: Mapped[str]
    """SHA-256 (hex) of the token; the token itself is shown once and never stored."""
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class OperatorAct(Base):
    """What a person did to the loop or to raters' data, beside what has a row of its own. Append-only."""

    __tablename__ = "operator_acts"
    __table_args__ = (
        CheckConstraint("identity in ('proven', 'claimed', 'machine')", name="identity"),
        CheckConstraint("via in ('desk', 'prefect', 'command', 'program')", name="via"),
    )

    id: Mapped[Id]
    actor: Mapped[str]
    identity: Mapped[str]
    """`proven` by a token, `claimed` in a form, or the user of this machine as it names them."""
    via: Mapped[str]
    act: Mapped[str]
    """`cancel_cycle`, `end_study`, `erase`, …"""
    subject: Mapped[str]
    """What it was done to, as people name it: "cycle 3"."""
    details: Mapped[dict[str, Any]]
    created_at: Mapped[CreatedAt]


class InstructionVersion(Base):
    """Instructions that were written at the desk; the shipped ones lie in files. Append-only."""

    __tablename__ = "instruction_versions"
    __table_args__ = (UniqueConstraint("version"),)

    id: Mapped[Id]
    task: Mapped[str]
    """The question that the text is about, as on `pairs.question`."""
    version: Mapped[str]
    """As consents name it: "helpful-2"."""
    text: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[CreatedAt]
