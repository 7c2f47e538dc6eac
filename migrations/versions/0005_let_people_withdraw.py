"""Let people withdraw: their comparisons are in no comparison set frozen afterwards."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = ("withdrawals", "frozen_withdrawals")
"""In the order of creation."""


def upgrade() -> None:
    _allow_statuses("select", "normal", "banned", "withdrawn")
    op.create_table(
        "withdrawals",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("rater_id", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_withdrawals_rater_id_raters"),
        sa.PrimaryKeyConstraint("id", name="pk_withdrawals"),
        sa.UniqueConstraint("rater_id", name="uq_withdrawals_rater_id"),
    )
    op.create_table(
        "frozen_withdrawals",
        sa.Column("withdrawal_id", sa.BigInteger(), nullable=False),
        sa.Column("freeze_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["withdrawal_id"], ["withdrawals.id"], name="fk_frozen_withdrawals_withdrawal_id_withdrawals"
        ),
        sa.ForeignKeyConstraint(["freeze_id"], ["freezes.id"], name="fk_frozen_withdrawals_freeze_id_freezes"),
        sa.PrimaryKeyConstraint("withdrawal_id", name="pk_frozen_withdrawals"),
    )
    op.create_index("ix_frozen_withdrawals_freeze_id", "frozen_withdrawals", ["freeze_id"])
    for table in TABLES:
        op.execute(
            f"create trigger {table}_append_only before update or delete on {table} "
            "for each row execute function refuse_change()"
        )
        op.execute(
            f"create trigger {table}_no_truncate before truncate on {table} "
            "for each statement execute function refuse_change()"
        )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    # Whoever withdrew takes no part under the old schema either.
    op.execute("update raters set status = 'banned' where status = 'withdrawn'")
    _allow_statuses("select", "normal", "banned")


def _allow_statuses(*statuses: str) -> None:
    allowed = ", ".join(f"'{status}'" for status in statuses)
    op.drop_constraint(op.f("ck_raters_status"), "raters", type_="check")
    op.create_check_constraint(op.f("ck_raters_status"), "raters", f"status in ({allowed})")
