"""Let others than plain policies compete: best-of-k, outside endpoints, people who write."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SIDES = ("a", "b")
WRITTEN_ONCE = ("text", "completed_at", "reply_tokens", "truncated")
"""Columns of a candidate that are filled at its completion, under the old schema."""
ADDED_ONCE = ("written_by_id", "details")


def upgrade() -> None:
    op.create_table(
        "contestants",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("preference_model_id", sa.BigInteger(), nullable=True),
        sa.Column("k", sa.BigInteger(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("key_variable", sa.Text(), nullable=True),
        sa.Column("group_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("kind in ('policy', 'best_of', 'endpoint', 'writer')", name=op.f("ck_contestants_kind")),
        sa.CheckConstraint(
            "(kind in ('policy', 'best_of')) = (snapshot_id is not null)", name=op.f("ck_contestants_snapshot")
        ),
        sa.CheckConstraint(
            "(kind = 'best_of') = (preference_model_id is not null) and (kind = 'best_of') = (k is not null)",
            name=op.f("ck_contestants_best_of"),
        ),
        sa.CheckConstraint("k between 2 and 64", name=op.f("ck_contestants_k")),
        sa.CheckConstraint(
            "(kind = 'endpoint') = (url is not null) and (kind = 'endpoint') = (model is not null) "
            "and (key_variable is null or kind = 'endpoint')",
            name=op.f("ck_contestants_endpoint"),
        ),
        sa.CheckConstraint("(kind = 'writer') = (group_id is not null)", name=op.f("ck_contestants_writer")),
        sa.ForeignKeyConstraint(["snapshot_id"], ["artifacts.id"], name="fk_contestants_snapshot_id_artifacts"),
        sa.ForeignKeyConstraint(
            ["preference_model_id"], ["artifacts.id"], name="fk_contestants_preference_model_id_artifacts"
        ),
        sa.ForeignKeyConstraint(["group_id"], ["rater_groups.id"], name="fk_contestants_group_id_rater_groups"),
        sa.PrimaryKeyConstraint("id", name="pk_contestants"),
        sa.UniqueConstraint("name", name="uq_contestants_name"),
    )
    op.create_index(
        "uq_contestants_policy",
        "contestants",
        ["snapshot_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'policy'"),
    )
    op.execute(
        "create trigger contestants_append_only before update or delete on contestants "
        "for each row execute function refuse_change()"
    )
    op.execute(
        "create trigger contestants_no_truncate before truncate on contestants "
        "for each statement execute function refuse_change()"
    )
    # What met until now were policies: each becomes a contestant, and the pairings speak of those.
    op.execute(
        "insert into contestants (name, kind, snapshot_id) "
        "select distinct on (artifacts.digest) artifacts.digest, 'policy', artifacts.id from artifacts "
        "join pairings on artifacts.id in (contestant_a_id, contestant_b_id) order by artifacts.digest, artifacts.id"
    )
    _repoint(
        "contestants",
        "select other.id from contestants other join artifacts on artifacts.digest = other.name "
        "where artifacts.id = pairings.{column}",
    )
    op.add_column("candidates", sa.Column("contestant_id", sa.BigInteger(), nullable=True))
    op.add_column("candidates", sa.Column("written_by_id", sa.BigInteger(), nullable=True))
    op.add_column("candidates", sa.Column("details", postgresql.JSONB(), nullable=True))
    op.create_foreign_key(
        "fk_candidates_contestant_id_contestants", "candidates", "contestants", ["contestant_id"], ["id"]
    )
    op.create_foreign_key("fk_candidates_written_by_id_raters", "candidates", "raters", ["written_by_id"], ["id"])
    op.create_index(
        "ix_candidates_to_write",
        "candidates",
        ["contestant_id"],
        postgresql_where=sa.text("text is null and contestant_id is not null"),
    )
    _fixed_columns(*WRITTEN_ONCE, *ADDED_ONCE)


def downgrade() -> None:
    op.execute(
        "do $$ begin if exists (select from contestants where kind <> 'policy') then raise exception "
        "'contestants other than policies are on record; the schema before 0007 has no place for them'; "
        "end if; end $$"
    )
    _fixed_columns(*WRITTEN_ONCE)
    op.drop_index("ix_candidates_to_write", "candidates")
    op.drop_column("candidates", "details")
    op.drop_column("candidates", "written_by_id")
    op.drop_column("candidates", "contestant_id")
    _repoint("artifacts", "select other.snapshot_id from contestants other where other.id = pairings.{column}")
    op.drop_table("contestants")


def _repoint(table: str, new_id: str) -> None:
    """Let the pairings' columns speak of another table's rows."""
    # The rows themselves stay what they were; only what their numbers refer to is another table.
    op.execute("alter table pairings disable trigger pairings_fixed_columns")
    old = "artifacts" if table == "contestants" else "contestants"
    for side in SIDES:
        column = f"contestant_{side}_id"
        op.drop_constraint(f"fk_pairings_{column}_{old}", "pairings", type_="foreignkey")
        op.execute(f"update pairings set {column} = ({new_id.format(column=column)})")
        op.create_foreign_key(f"fk_pairings_{column}_{table}", "pairings", table, [column], ["id"])
    op.execute("alter table pairings enable trigger pairings_fixed_columns")


def _fixed_columns(*columns: str) -> None:
    """Which columns of a candidate may be filled once."""
    op.execute("drop trigger candidates_fixed_columns on candidates")
    arguments = ", ".join(f"'{word}'" for word in ("once", *columns))
    op.execute(
        "create trigger candidates_fixed_columns before update on candidates "
        f"for each row execute function refuse_other_changes({arguments})"
    )
