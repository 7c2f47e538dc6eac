"""Queue the work: groups of raters, and queues that say who may do what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
# Columns that may be filled once; everything else on the row stays as it was written.
FILLED_ONCE = ("group_memberships", "queues")
TABLES = ("rater_groups", "group_memberships", "queues")
"""In the order of creation."""


def upgrade() -> None:
    op.create_table(
        "rater_groups",
        _id(),
        sa.Column("name", sa.Text(), nullable=False),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name="pk_rater_groups"),
        sa.UniqueConstraint("name", name="uq_rater_groups_name"),
    )
    op.create_table(
        "group_memberships",
        _id(),
        sa.Column("rater_id", sa.BigInteger(), nullable=False),
        sa.Column("group_id", sa.BigInteger(), nullable=False),
        _created_at(),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_group_memberships_rater_id_raters"),
        sa.ForeignKeyConstraint(["group_id"], ["rater_groups.id"], name="fk_group_memberships_group_id_rater_groups"),
        sa.PrimaryKeyConstraint("id", name="pk_group_memberships"),
    )
    op.create_index(
        "uq_group_memberships_now",
        "group_memberships",
        ["rater_id", "group_id"],
        unique=True,
        postgresql_where=sa.text("ended_at is null"),
    )
    op.create_index("ix_group_memberships_group_id", "group_memberships", ["group_id"])
    op.create_table(
        "queues",
        _id(),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("group_id", sa.BigInteger(), nullable=True),
        sa.Column("rater_status", sa.Text(), nullable=True),
        sa.Column("weight", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("goal", sa.BigInteger(), nullable=True),
        _created_at(),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("rater_status in ('select', 'normal')", name=op.f("ck_queues_rater_status")),
        sa.CheckConstraint("weight > 0", name=op.f("ck_queues_weight")),
        sa.CheckConstraint("goal > 0", name=op.f("ck_queues_goal")),
        sa.ForeignKeyConstraint(["group_id"], ["rater_groups.id"], name="fk_queues_group_id_rater_groups"),
        sa.PrimaryKeyConstraint("id", name="pk_queues"),
    )
    op.create_index("ix_comparisons_created_at", "comparisons", ["created_at"], postgresql_using="brin")
    op.execute(
        "create trigger rater_groups_append_only before update or delete on rater_groups "
        "for each row execute function refuse_change()"
    )
    for table in FILLED_ONCE:
        op.execute(
            f"create trigger {table}_fixed_columns before update on {table} "
            "for each row execute function refuse_other_changes('once', 'ended_at')"
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
    op.drop_index("ix_comparisons_created_at", "comparisons")
    for table in reversed(TABLES):
        op.drop_table(table)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False)


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False)
