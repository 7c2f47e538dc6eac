"""Let programs in: API keys of the policy server."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_digest", sa.Text(), nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("requests_per_minute > 0", name=op.f("ck_api_keys_requests_per_minute")),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("key_digest", name="uq_api_keys_key_digest"),
        sa.UniqueConstraint("name", name="uq_api_keys_name"),
    )
    op.execute(
        "create trigger api_keys_fixed_columns before update on api_keys "
        "for each row execute function refuse_other_changes('once', 'ended_at')"
    )
    op.execute(
        "create trigger api_keys_no_delete before delete on api_keys for each row execute function refuse_change()"
    )
    op.execute(
        "create trigger api_keys_no_truncate before truncate on api_keys "
        "for each statement execute function refuse_change()"
    )


def downgrade() -> None:
    op.drop_table("api_keys")
