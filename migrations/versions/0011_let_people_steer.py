"""Let people steer: approvals and who decided, runs of a cycle, progress from any machine, operators by name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

APPEND_ONLY = (
    "instance_identity",
    "cycle_runs",
    "stage_metrics",
    "approvals",
    "operator_acts",
    "instruction_versions",
)
CHANGEABLE = {
    "stage_progress": ("any time", "phase", "step", "steps", "eta_s", "told_at"),
    "operators": ("until ended", "token_digest", "ended_at"),
}
EVALUATION_KINDS = "'preference_model', 'orientation', 'policy', 'best_of_n', 'elo'"
ON_DECISIONS = {
    "kind": ("cycle", "kind in ('initial', 'cycle', 'roll_back', 'by_hand')"),
    "identity": ("program", "identity in ('program', 'proven', 'claimed', 'machine')"),
    "via": ("program", "via in ('program', 'desk', 'prefect', 'command')"),
}


def upgrade() -> None:
    op.create_table("instance_identity", sa.Column("id", sa.Text(), primary_key=True), _now("created_at"))
    op.execute("insert into instance_identity (id) values (gen_random_uuid()::text)")
    op.create_table(
        "cycle_runs",
        _reference("cycle_id", "cycle_runs", "cycles", primary_key=True),
        sa.Column("flow_run_id", sa.Text(), primary_key=True),
        _now("created_at"),
    )
    op.create_index("ix_cycle_runs_flow_run_id", "cycle_runs", ["flow_run_id"])
    op.create_table(
        "stage_progress",
        _reference("stage_id", "stage_progress", "stages", primary_key=True),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("steps", sa.BigInteger()),
        sa.Column("eta_s", sa.Float()),
        _now("told_at"),
    )
    op.create_table(
        "stage_metrics",
        _reference("stage_id", "stage_metrics", "stages", primary_key=True),
        sa.Column("line", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("numbers", postgresql.JSONB(), nullable=False),
        _now("created_at"),
    )
    op.create_table(
        "approvals",
        _id(),
        _reference("cycle_id", "approvals", "cycles"),
        _reference("snapshot_id", "approvals", "artifacts"),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("reasons", postgresql.JSONB(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        _now("created_at"),
        sa.UniqueConstraint("cycle_id", "snapshot_id", name="uq_approvals_cycle_id_snapshot_id"),
    )
    op.create_table(
        "operators",
        _id(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("token_digest", sa.Text(), nullable=False),
        _now("created_at"),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("name", name="uq_operators_name"),
        sa.UniqueConstraint("token_digest", name="uq_operators_token_digest"),
    )
    op.create_table(
        "operator_acts",
        _id(),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("actor", "identity", "via", "act", "subject")),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        _now("created_at"),
        sa.CheckConstraint("identity in ('proven', 'claimed', 'machine')", name=op.f("ck_operator_acts_identity")),
        sa.CheckConstraint("via in ('desk', 'prefect', 'command', 'program')", name=op.f("ck_operator_acts_via")),
    )
    op.create_table(
        "instruction_versions",
        _id(),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("task", "version", "text", "created_by")),
        _now("created_at"),
        sa.UniqueConstraint("version", name="uq_instruction_versions_version"),
    )
    for name, (default, check) in ON_DECISIONS.items():
        op.add_column("decisions", sa.Column(name, sa.Text(), server_default=default, nullable=False))
        op.create_check_constraint(op.f(f"ck_decisions_{name}"), "decisions", check)
    op.add_column("decisions", sa.Column("note", sa.Text()))
    op.add_column("decisions", sa.Column("approval_id", sa.BigInteger()))
    op.create_foreign_key("fk_decisions_approval_id_approvals", "decisions", "approvals", ["approval_id"], ["id"])
    op.create_unique_constraint("uq_decisions_approval_id", "decisions", ["approval_id"])
    # What was decided stays; only what it is called is new.
    op.execute("alter table decisions disable trigger decisions_append_only")
    op.execute("update decisions set kind = 'initial' where reasons @> '[{\"gate\": \"none\"}]'")
    op.execute("alter table decisions enable trigger decisions_append_only")
    op.add_column("deployments", sa.Column("preference_model_id", sa.BigInteger()))
    op.create_foreign_key(
        "fk_deployments_preference_model_id_artifacts", "deployments", "artifacts", ["preference_model_id"], ["id"]
    )
    op.execute("alter table deployments disable trigger deployments_fixed_columns")
    op.execute(
        "update deployments set preference_model_id = (select parent_id from lineage_edges "
        "where child_id = deployments.snapshot_id and role = 'preference_model')"
    )
    op.execute("alter table deployments enable trigger deployments_fixed_columns")
    _evaluation_kinds(f"{EVALUATION_KINDS}, 'fresh_agreement'")
    _guard()


def downgrade() -> None:
    op.execute(
        "do $$ begin if exists (select from approvals) or exists (select from operators) "
        "or exists (select from operator_acts) or exists (select from instruction_versions) "
        "or exists (select from decisions where kind in ('roll_back', 'by_hand')) "
        "or exists (select from evaluations where kind = 'fresh_agreement') then raise exception "
        "'people have steered: approvals, operators or their acts are on record, and the schema before 0011 has no "
        "place for them'; end if; end $$"
    )
    _evaluation_kinds(EVALUATION_KINDS)
    op.drop_column("deployments", "preference_model_id")
    for name in ("approval_id", "note", *ON_DECISIONS):
        op.drop_column("decisions", name)
    for table in (*reversed(APPEND_ONLY), *CHANGEABLE):
        op.drop_table(table)


def _evaluation_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_evaluations_kind"), "evaluations", type_="check")
    op.create_check_constraint(op.f("ck_evaluations_kind"), "evaluations", f"kind in ({kinds})")


def _guard() -> None:
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger {table}_append_only before update or delete on {table} "
            "for each row execute function refuse_change()"
        )
    for table, words in CHANGEABLE.items():
        arguments = ", ".join(f"'{word}'" for word in words)
        op.execute(
            f"create trigger {table}_fixed_columns before update on {table} "
            f"for each row execute function refuse_other_changes({arguments})"
        )
        op.execute(
            f"create trigger {table}_no_delete before delete on {table} for each row execute function refuse_change()"
        )
    for table in (*APPEND_ONLY, *CHANGEABLE):
        op.execute(
            f"create trigger {table}_no_truncate before truncate on {table} "
            "for each statement execute function refuse_change()"
        )


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=False), primary_key=True)


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False)


def _reference(name: str, table: str, other: str, *, primary_key: bool = False) -> sa.Column[int]:
    key = sa.ForeignKey(f"{other}.id", name=f"fk_{table}_{name}_{other}")
    return sa.Column(name, sa.BigInteger(), key, primary_key=primary_key, nullable=False, autoincrement=False)
