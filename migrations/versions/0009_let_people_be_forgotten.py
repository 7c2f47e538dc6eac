"""Let people be forgotten: texts and identity become tombstones, what happened stays on record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLES = ("erasures", "erased_comparisons", "erased_artifacts")
"""In the order of creation."""
TOMBSTONE = "[erased]"

# Columns that hold what a person wrote, or who the person is. Nothing else may change, and nothing but a tombstone or
# NULL may take their place; names that must stay unique become `erased-<id>`.
ERASABLE = {
    "candidates": ("text",),
    "comparisons": ("source_value",),
    "dialogues": ("split_key", "client_key"),
    "messages": ("content", "client_key"),
    "problem_reports": ("content",),
    "raters": ("handle", "platform", "token_digest"),
    "visits": ("external_id",),
}

# The refusals of 0002, with a way out for an erasure: `set local orchestrator.erasing` in its transaction.
_CASES = "".join(
    f"when '{table}' then array[{', '.join(repr(name) for name in columns)}] " for table, columns in ERASABLE.items()
)
IS_ERASURE = f"""
create function is_erasure(changed text, before jsonb, after jsonb) returns boolean language sql immutable as $$
    select before - columns = after - columns and not exists (
        select from unnest(columns) as name
        where after -> name is distinct from before -> name
          and coalesce(after ->> name, '{TOMBSTONE}') <> '{TOMBSTONE}'
          and after ->> name <> 'erased-' || (after ->> 'id')
    )
    from (select case changed {_CASES} else array[]::text[] end) as erasable (columns)
$$"""
_WAY_OUT = """
    if tg_op = 'UPDATE' and coalesce(current_setting('orchestrator.erasing', true), '') <> ''
       and is_erasure(tg_table_name, to_jsonb(old), to_jsonb(new)) then
        return new;
    end if;"""
REFUSE_CHANGE = """
create or replace function refuse_change() returns trigger language plpgsql as $$
begin{way_out}
    raise exception using errcode = 'RL001', table = tg_table_name,
        message = format('%s refused: rows of %s are append-only', tg_op, tg_table_name);
end $$"""
REFUSE_OTHER_CHANGES = """
create or replace function refuse_other_changes() returns trigger language plpgsql as $$
declare
    -- tg_argv[0] is the rule, the others are the columns that may change.
    rule text := tg_argv[0];
    allowed text[] := tg_argv[1:];
    before jsonb := to_jsonb(old);
    after jsonb := to_jsonb(new);
    name text;
begin{way_out}
    if before = after then
        return new;
    end if;
    if before - allowed is distinct from after - allowed then
        raise exception using errcode = 'RL001', table = tg_table_name, message = format(
            'UPDATE refused: of a row of %s only %s may change', tg_table_name, array_to_string(allowed, ', '));
    end if;
    if rule = 'until ended' and before ->> 'ended_at' is not null then
        raise exception using errcode = 'RL001', table = tg_table_name, message = format(
            'UPDATE refused: this row of %s ended at %s', tg_table_name, before ->> 'ended_at');
    end if;
    if rule = 'once' then
        foreach name in array allowed loop
            if before ->> name is not null and before -> name is distinct from after -> name then
                raise exception using errcode = 'RL001', table = tg_table_name, message = format(
                    'UPDATE refused: %s.%s is written once', tg_table_name, name);
            end if;
        end loop;
    end if;
    return new;
end $$"""


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("rater_id", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_erasures_rater_id_raters"),
        sa.PrimaryKeyConstraint("id", name="pk_erasures"),
        sa.UniqueConstraint("rater_id", name="uq_erasures_rater_id"),
    )
    op.create_table(
        "erased_comparisons",
        sa.Column("comparison_id", sa.BigInteger(), nullable=False),
        sa.Column("erasure_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name="fk_erased_comparisons_comparison_id_comparisons"
        ),
        sa.ForeignKeyConstraint(["erasure_id"], ["erasures.id"], name="fk_erased_comparisons_erasure_id_erasures"),
        sa.PrimaryKeyConstraint("comparison_id", name="pk_erased_comparisons"),
    )
    op.create_table(
        "erased_artifacts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("erasure_id", sa.BigInteger(), nullable=False),
        sa.Column("rewritten_digest", sa.Text(), nullable=False),
        sa.Column("num_comparisons", sa.BigInteger(), nullable=False),
        sa.Column("num_records", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["erasure_id"], ["erasures.id"], name="fk_erased_artifacts_erasure_id_erasures"),
        sa.PrimaryKeyConstraint("id", name="pk_erased_artifacts"),
        sa.UniqueConstraint("digest", "erasure_id", name="uq_erased_artifacts_digest"),
    )
    op.execute(IS_ERASURE)
    op.execute(REFUSE_CHANGE.format(way_out=_WAY_OUT))
    op.execute(REFUSE_OTHER_CHANGES.format(way_out=_WAY_OUT))
    for table in TABLES:
        if table == "erasures":
            op.execute(
                "create trigger erasures_fixed_columns before update on erasures "
                "for each row execute function refuse_other_changes('once', 'completed_at')"
            )
            op.execute(
                "create trigger erasures_no_delete before delete on erasures "
                "for each row execute function refuse_change()"
            )
        else:
            op.execute(
                f"create trigger {table}_append_only before update or delete on {table} "
                "for each row execute function refuse_change()"
            )
        op.execute(
            f"create trigger {table}_no_truncate before truncate on {table} "
            "for each statement execute function refuse_change()"
        )


def downgrade() -> None:
    op.execute(
        "do $$ begin if exists (select from erasures) then raise exception "
        "'people were erased; the schema before 0009 has no place for the record of it'; end if; end $$"
    )
    for table in reversed(TABLES):
        op.drop_table(table)
    op.execute(REFUSE_CHANGE.format(way_out=""))
    op.execute(REFUSE_OTHER_CHANGES.format(way_out=""))
    op.execute("drop function is_erasure(text, jsonb, jsonb)")
