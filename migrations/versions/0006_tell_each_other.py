"""Let the desk tell raters something, and raters the desk."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
TABLES = {"announcements": "ended_at", "problem_reports": "handled_at"}
"""In the order of creation, with the column that may be filled once."""


def upgrade() -> None:
    op.create_table(
        "announcements",
        _id(),
        sa.Column("content", sa.Text(), nullable=False),
        _created_at(),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_announcements"),
    )
    op.create_index("ix_announcements_current", "announcements", ["id"], postgresql_where=sa.text("ended_at is null"))
    op.create_table(
        "problem_reports",
        _id(),
        sa.Column("rater_id", sa.BigInteger(), nullable=False),
        sa.Column("dialogue_id", sa.BigInteger(), nullable=True),
        sa.Column("client_key", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        _created_at(),
        sa.Column("handled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_problem_reports_rater_id_raters"),
        sa.ForeignKeyConstraint(["dialogue_id"], ["dialogues.id"], name="fk_problem_reports_dialogue_id_dialogues"),
        sa.PrimaryKeyConstraint("id", name="pk_problem_reports"),
        sa.UniqueConstraint("rater_id", "client_key", name="uq_problem_reports_rater_id_client_key"),
    )
    op.create_index("ix_problem_reports_dialogue_id", "problem_reports", ["dialogue_id"])
    op.create_index(
        "ix_problem_reports_open", "problem_reports", ["id"], postgresql_where=sa.text("handled_at is null")
    )
    for table, column in TABLES.items():
        op.execute(
            f"create trigger {table}_fixed_columns before update on {table} "
            f"for each row execute function refuse_other_changes('once', '{column}')"
        )
        op.execute(
            f"create trigger {table}_no_delete before delete on {table} for each row execute function refuse_change()"
        )
        op.execute(
            f"create trigger {table}_no_truncate before truncate on {table} "
            "for each statement execute function refuse_change()"
        )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False)


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False)
