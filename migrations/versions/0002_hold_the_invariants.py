"""Hold the invariants: append-only rows, complete pairs, and the queue of fresh comparisons.

Error codes RL001 and RL002 are named in `db/errors.py`. The functions do their work whoever writes, other programs
included; `docs/explanation/data.md` says what each promises.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

APPEND_ONLY = (
    "artifacts",
    "comparisons",
    "decisions",
    "evaluations",
    "freezes",
    "frozen_comparisons",
    "imports",
    "lineage_edges",
    "messages",
    "pairs",
    "prompts",
    "quarantined_records",
)

# Columns that may be filled once; everything else on the row stays as it was written.
FILLED_ONCE = {
    "candidates": ("text", "completed_at", "reply_tokens", "truncated"),
    "deployments": ("ended_at",),
    "dialogues": ("ended_at", "split_key", "pinned_split"),
    "pairings": ("ended_at",),
}

# Columns that may change until the row's `ended_at` is set, and never after.
UNTIL_ENDED = {
    "cycles": ("state", "note", "ended_at"),
    "stages": ("state", "fingerprint", "artifact_id", "flow_run_id", "job_seconds", "error", "ended_at"),
}

# Columns that may change at any time.
CHANGEABLE: dict[str, tuple[str, ...]] = {"raters": ("status", "token_digest")}

FUNCTIONS = {
    "refuse_change": """
create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception using errcode = 'RL001', table = tg_table_name,
        message = format('%s refused: rows of %s are append-only', tg_op, tg_table_name);
end $$""",
    "refuse_other_changes": """
create function refuse_other_changes() returns trigger language plpgsql as $$
declare
    -- tg_argv[0] is the rule, the others are the columns that may change.
    rule text := tg_argv[0];
    allowed text[] := tg_argv[1:];
    before jsonb := to_jsonb(old);
    after jsonb := to_jsonb(new);
    name text;
begin
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
end $$""",
    # One statement for all rows of an INSERT or COPY: a queue row is written in the writer's own transaction, so it
    # becomes visible together with its comparison and never before.
    "accept_comparisons": """
create function accept_comparisons() returns trigger language plpgsql as $$
declare
    incomplete bigint;
begin
    select inserted.pair_id into incomplete
    from inserted
    where (
        select count(*) from candidates
        where candidates.pair_id = inserted.pair_id and candidates.completed_at is not null
    ) <> 2
    limit 1;
    if found then
        raise exception using errcode = 'RL002', table = 'comparisons', message = format(
            'Pair %s does not have two complete replies; a choice needs both', incomplete);
    end if;
    insert into fresh_comparisons (comparison_id) select id from inserted;
    return null;
end $$""",
}


def upgrade() -> None:
    for body in FUNCTIONS.values():
        op.execute(body)
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger {table}_append_only before update or delete on {table} "
            "for each row execute function refuse_change()"
        )
    rules: dict[str, dict[str, tuple[str, ...]]] = {
        "once": FILLED_ONCE,
        "until ended": UNTIL_ENDED,
        "any time": CHANGEABLE,
    }
    for rule, tables in rules.items():
        for table, columns in tables.items():
            arguments = ", ".join(f"'{word}'" for word in (rule, *columns))
            op.execute(
                f"create trigger {table}_fixed_columns before update on {table} "
                f"for each row execute function refuse_other_changes({arguments})"
            )
            op.execute(
                f"create trigger {table}_no_delete before delete on {table} "
                "for each row execute function refuse_change()"
            )
    for table in _all_tables():
        op.execute(
            f"create trigger {table}_no_truncate before truncate on {table} "
            "for each statement execute function refuse_change()"
        )
    op.execute(
        "create trigger comparisons_accept after insert on comparisons "
        "referencing new table as inserted for each statement execute function accept_comparisons()"
    )


def downgrade() -> None:
    op.execute("drop trigger comparisons_accept on comparisons")
    for table in _all_tables():
        op.execute(f"drop trigger {table}_no_truncate on {table}")
    for table in APPEND_ONLY:
        op.execute(f"drop trigger {table}_append_only on {table}")
    for table in (*FILLED_ONCE, *UNTIL_ENDED, *CHANGEABLE):
        op.execute(f"drop trigger {table}_fixed_columns on {table}")
        op.execute(f"drop trigger {table}_no_delete on {table}")
    for name in FUNCTIONS:
        op.execute(f"drop function {name}()")


def _all_tables() -> tuple[str, ...]:
    return (*APPEND_ONLY, *FILLED_ONCE, *UNTIL_ENDED, *CHANGEABLE, "fresh_comparisons")
