"""The ledger: cycles and their stages, artifacts and how they came about, what was measured and what went live."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, CreatedAt, Id


class Cycle(Base):
    """One turn of the loop, by the cycle flow; only `state`, `note` and `ended_at` change. At most one is open."""

    __tablename__ = "cycles"
    __table_args__ = (
        CheckConstraint("state in ('open', 'promoted', 'refused', 'failed', 'cancelled')", name="state"),
        CheckConstraint("(state = 'open') = (ended_at is null)", name="ended"),
        UniqueConstraint("number"),
        Index("uq_cycles_open", text("(true)"), unique=True, postgresql_where=text("state = 'open'")),
    )

    id: Mapped[Id]
    number: Mapped[int]
    """0 puts the initial policy before people; 1, 2, ... train."""
    name: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="open")
    """`open` until it ends; `promoted` and `refused` tell what the gate said."""
    config: Mapped[dict[str, Any]]
    code_revision: Mapped[str | None]
    note: Mapped[str | None]
    started_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class Stage(Base):
    """One attempt at one stage of a cycle. Appended at its start; state, times and result are filled at its end."""

    __tablename__ = "stages"
    __table_args__ = (
        CheckConstraint("state in ('running', 'done', 'found', 'failed')", name="state"),
        Index("ix_stages_cycle_id", "cycle_id"),
    )

    id: Mapped[Id]
    cycle_id: Mapped[int] = mapped_column(ForeignKey("cycles.id"))
    name: Mapped[str]
    fingerprint: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="running")
    """`found`: an artifact with this fingerprint was there already and nothing was redone."""
    artifact_id: Mapped[int | None] = mapped_column(ForeignKey("artifacts.id"))
    flow_run_id: Mapped[str | None]
    job_seconds: Mapped[float | None]
    """Wall time in which the stage's job process ran, its imports included; the rest of the stage is overhead."""
    error: Mapped[str | None]
    started_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]


class Artifact(Base):
    """An immutable directory in the artifact store. Written once, at publication. Append-only."""

    __tablename__ = "artifacts"
    __table_args__ = (
        CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name="digest"),
        UniqueConstraint("fingerprint", "digest"),
        Index("ix_artifacts_kind", "kind"),
        Index("ix_artifacts_digest", "digest"),
    )

    id: Mapped[Id]
    kind: Mapped[str]
    """`initial_policy`, `comparison_set`, `preference_model`, `prompt_set`, `snapshot`, `evaluation`, `report` …"""
    fingerprint: Mapped[str]
    """SHA-256 over kind, settings and the digests of the inputs: what it is asked to be."""
    digest: Mapped[str]
    """SHA-256 over the manifest of its files: what it turned out to be."""
    settings: Mapped[dict[str, Any]]
    results: Mapped[dict[str, Any]]
    num_bytes: Mapped[int]
    code_revision: Mapped[str | None]
    cycle_id: Mapped[int | None] = mapped_column(ForeignKey("cycles.id"))
    created_at: Mapped[CreatedAt]


class LineageEdge(Base):
    """`parent` went into `child` in the named role. Written with the child. Append-only."""

    __tablename__ = "lineage_edges"
    __table_args__ = (
        CheckConstraint("child_id <> parent_id", name="no_loop"),
        Index("ix_lineage_edges_parent_id", "parent_id"),
    )

    child_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"))


class Evaluation(Base):
    """Numbers measured about an artifact. Append-only; a new measurement is a new row."""

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint(
            "kind in ('preference_model', 'orientation', 'policy', 'best_of_n', 'elo', 'fresh_agreement')", name="kind"
        ),
        Index("ix_evaluations_subject_id", "subject_id"),
        Index("ix_evaluations_cycle_id", "cycle_id"),
    )

    id: Mapped[Id]
    cycle_id: Mapped[int | None] = mapped_column(ForeignKey("cycles.id"))
    subject_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"))
    kind: Mapped[str]
    artifact_id: Mapped[int | None] = mapped_column(ForeignKey("artifacts.id"))
    """The evaluation artifact that holds the details, where there is one."""
    numbers: Mapped[dict[str, Any]]
    created_at: Mapped[CreatedAt]


class Decision(Base):
    """What was decided about promoting a snapshot, by whom and on which evidence. Append-only."""

    __tablename__ = "decisions"
    __table_args__ = (
        CheckConstraint("decision in ('promote', 'refuse')", name="decision"),
        CheckConstraint("kind in ('initial', 'cycle', 'roll_back', 'by_hand')", name="kind"),
        CheckConstraint("identity in ('program', 'proven', 'claimed', 'machine')", name="identity"),
        CheckConstraint("via in ('program', 'desk', 'prefect', 'command')", name="via"),
        UniqueConstraint("approval_id"),
        Index("ix_decisions_cycle_id", "cycle_id"),
    )

    id: Mapped[Id]
    cycle_id: Mapped[int | None] = mapped_column(ForeignKey("cycles.id"))
    snapshot_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"))
    decision: Mapped[str]
    reasons: Mapped[list[Any]]
    evidence: Mapped[dict[str, Any]]
    decided_by: Mapped[str]
    """`gates`, or a person's name."""
    kind: Mapped[str] = mapped_column(server_default="cycle")
    """`initial`: nothing was live; `cycle`: its gates, or whom they asked; `roll_back` and `by_hand`: a person."""
    identity: Mapped[str] = mapped_column(server_default="program")
    """How the name is known: `proven` by a token, `claimed` in a form, or the user of the `machine`."""
    via: Mapped[str] = mapped_column(server_default="program")
    note: Mapped[str | None]
    """Why, in the person's words."""
    approval_id: Mapped[int | None] = mapped_column(ForeignKey("approvals.id"))
    """The approval that this answers; one decision each, so of two at once one is refused."""
    created_at: Mapped[CreatedAt]


class Deployment(Base):
    """The period in which a snapshot answers raters as `policy-live`. Only `ended_at` is set after its start."""

    __tablename__ = "deployments"
    __table_args__ = (
        Index("uq_deployments_live", text("(true)"), unique=True, postgresql_where=text("ended_at is null")),
        Index("ix_deployments_snapshot_id", "snapshot_id"),
    )

    id: Mapped[Id]
    snapshot_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"))
    cycle_id: Mapped[int | None] = mapped_column(ForeignKey("cycles.id"))
    decision_id: Mapped[int] = mapped_column(ForeignKey("decisions.id"))
    preference_model_id: Mapped[int | None] = mapped_column(ForeignKey("artifacts.id"))
    """The preference model that it was trained against and judged by; NULL for an initial policy."""
    started_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]
