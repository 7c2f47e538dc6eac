"""Drop the table of prompts: no release ever wrote a row of it; prompts come from dialogues and from files.

A row that stands there all the same was put there by hand, perhaps by a person: then nothing is migrated.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # No row may come between the look and the drop.
    op.execute("lock table prompts in access exclusive mode")
    op.execute(
        "do $$ begin if exists (select from prompts) then raise exception "
        "'the table prompts holds rows, and the schema from 0010 on has no place for them: save them with "
        "pg_dump -t prompts, empty the table as its owner (alter table prompts disable trigger user; delete from "
        "prompts; alter table prompts enable trigger user) and migrate again'; end if; end $$"
    )
    op.drop_table("prompts")


def downgrade() -> None:
    op.create_table(
        "prompts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("messages", JSONB(none_as_null=True), nullable=False),
        sa.Column("identity_digest", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("kind in ('helpful', 'harmless')", name=op.f("ck_prompts_kind")),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
        sa.UniqueConstraint("identity_digest", name="uq_prompts_identity_digest"),
    )
    op.execute(
        "create trigger prompts_append_only before update or delete on prompts "
        "for each row execute function refuse_change()"
    )
    op.execute(
        "create trigger prompts_no_truncate before truncate on prompts "
        "for each statement execute function refuse_change()"
    )
