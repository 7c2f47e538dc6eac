"""Let people in: invitations, sessions, consents, studies of outside platforms, and edited replies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
APPEND_ONLY = ("invitation_uses", "consents")
# Columns that may be filled once; everything else on the row stays as it was written.
FILLED_ONCE = {
    "invitations": ("ended_at",),
    "rater_sessions": ("ended_at",),
    "studies": ("ended_at",),
    "visits": ("completed_at",),
}
TABLES = ("invitations", "invitation_uses", "rater_sessions", "consents", "studies", "visits")
"""In the order of creation."""


def upgrade() -> None:
    op.create_table(
        "invitations",
        _id(),
        sa.Column("token_digest", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("platform", sa.Text(), nullable=True),
        sa.Column("max_uses", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        _created_at(),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("max_uses > 0", name=op.f("ck_invitations_max_uses")),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
        sa.UniqueConstraint("token_digest", name="uq_invitations_token_digest"),
    )
    op.create_table(
        "invitation_uses",
        sa.Column("rater_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("invitation_id", sa.BigInteger(), nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_invitation_uses_rater_id_raters"),
        sa.ForeignKeyConstraint(
            ["invitation_id"], ["invitations.id"], name="fk_invitation_uses_invitation_id_invitations"
        ),
        sa.PrimaryKeyConstraint("rater_id", name="pk_invitation_uses"),
    )
    op.create_index("ix_invitation_uses_invitation_id", "invitation_uses", ["invitation_id"])
    op.create_table(
        "rater_sessions",
        _id(),
        sa.Column("token_digest", sa.Text(), nullable=False),
        sa.Column("rater_id", sa.BigInteger(), nullable=False),
        _created_at(),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_rater_sessions_rater_id_raters"),
        sa.PrimaryKeyConstraint("id", name="pk_rater_sessions"),
        sa.UniqueConstraint("token_digest", name="uq_rater_sessions_token_digest"),
    )
    op.create_index("ix_rater_sessions_rater_id", "rater_sessions", ["rater_id"])
    op.create_table(
        "consents",
        _id(),
        sa.Column("rater_id", sa.BigInteger(), nullable=False),
        sa.Column("instruction_version", sa.Text(), nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_consents_rater_id_raters"),
        sa.PrimaryKeyConstraint("id", name="pk_consents"),
        sa.UniqueConstraint("rater_id", "instruction_version", name="uq_consents_rater_id_instruction_version"),
    )
    op.create_table(
        "studies",
        _id(),
        sa.Column("platform", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("completion_code", sa.Text(), nullable=False),
        sa.Column("num_comparisons", sa.BigInteger(), nullable=False),
        _created_at(),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("platform in ('prolific', 'mturk')", name=op.f("ck_studies_platform")),
        sa.CheckConstraint("num_comparisons > 0", name=op.f("ck_studies_num_comparisons")),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint("platform", "external_id", name="uq_studies_platform_external_id"),
    )
    op.create_table(
        "visits",
        _id(),
        sa.Column("study_id", sa.BigInteger(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("rater_id", sa.BigInteger(), nullable=False),
        _created_at(),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_visits_study_id_studies"),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_visits_rater_id_raters"),
        sa.PrimaryKeyConstraint("id", name="pk_visits"),
        sa.UniqueConstraint("study_id", "external_id", name="uq_visits_study_id_external_id"),
    )
    op.create_index("ix_visits_rater_id", "visits", ["rater_id"])
    op.add_column("pairs", sa.Column("edit_of_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key("fk_pairs_edit_of_id_pairs", "pairs", "pairs", ["edit_of_id"], ["id"])
    op.create_unique_constraint("uq_pairs_edit_of_id", "pairs", ["edit_of_id"])
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger {table}_append_only before update or delete on {table} "
            "for each row execute function refuse_change()"
        )
    for table, columns in FILLED_ONCE.items():
        arguments = ", ".join(f"'{word}'" for word in ("once", *columns))
        op.execute(
            f"create trigger {table}_fixed_columns before update on {table} "
            f"for each row execute function refuse_other_changes({arguments})"
        )
        op.execute(
            f"create trigger {table}_no_delete before delete on {table} for each row execute function refuse_change()"
        )
    for table in TABLES:
        op.execute(
            f"create trigger {table}_no_truncate before truncate on {table} "
            "for each statement execute function refuse_change()"
        )


def downgrade() -> None:
    op.drop_constraint("uq_pairs_edit_of_id", "pairs")
    op.drop_constraint("fk_pairs_edit_of_id_pairs", "pairs")
    op.drop_column("pairs", "edit_of_id")
    for table in reversed(TABLES):
        op.drop_table(table)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False)


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False)
