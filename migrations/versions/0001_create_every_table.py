"""Create every table.

The rows' own rules (what may be added, what may never change) follow in 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, ExcludeConstraint

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
TABLES = (
    "cycles",
    "imports",
    "prompts",
    "raters",
    "artifacts",
    "dialogues",
    "freezes",
    "quarantined_records",
    "decisions",
    "evaluations",
    "lineage_edges",
    "messages",
    "pairings",
    "stages",
    "deployments",
    "pairs",
    "candidates",
    "comparisons",
    "fresh_comparisons",
    "frozen_comparisons",
)
"""In the order of creation."""


def upgrade() -> None:
    op.create_table(
        "cycles",
        _id(),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("config", JSONB(none_as_null=True), nullable=False),
        sa.Column("code_revision", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'open') = (ended_at is null)", name=op.f("ck_cycles_ended")),
        sa.CheckConstraint(
            "state in ('open', 'promoted', 'refused', 'failed', 'cancelled')", name=op.f("ck_cycles_state")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_cycles"),
        sa.UniqueConstraint("number", name="uq_cycles_number"),
    )
    op.create_index(
        "uq_cycles_open",
        "cycles",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "imports",
        _id(),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("file_digest", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=True),
        sa.Column("num_read", sa.BigInteger(), nullable=False),
        sa.Column("num_imported", sa.BigInteger(), nullable=False),
        sa.Column("num_already_there", sa.BigInteger(), nullable=False),
        sa.Column("num_quarantined", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("split in ('held_out')", name=op.f("ck_imports_split")),
        sa.CheckConstraint(
            "num_read = num_imported + num_already_there + num_quarantined", name=op.f("ck_imports_counts_add_up")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_imports"),
    )
    op.create_table(
        "prompts",
        _id(),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("messages", JSONB(none_as_null=True), nullable=False),
        sa.Column("identity_digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("kind in ('helpful', 'harmless')", name=op.f("ck_prompts_kind")),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
        sa.UniqueConstraint("identity_digest", name="uq_prompts_identity_digest"),
    )
    op.create_table(
        "raters",
        _id(),
        sa.Column("handle", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("platform", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="normal", nullable=False),
        sa.Column("token_digest", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("kind in ('human', 'synthetic', 'imported', 'model')", name=op.f("ck_raters_kind")),
        sa.CheckConstraint("status in ('select', 'normal', 'banned')", name=op.f("ck_raters_status")),
        sa.PrimaryKeyConstraint("id", name="pk_raters"),
        sa.UniqueConstraint("handle", name="uq_raters_handle"),
        sa.UniqueConstraint("token_digest", name="uq_raters_token_digest"),
    )
    op.create_table(
        "artifacts",
        _id(),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("settings", JSONB(none_as_null=True), nullable=False),
        sa.Column("results", JSONB(none_as_null=True), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("code_revision", sa.Text(), nullable=True),
        sa.Column("cycle_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_artifacts_digest")),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_artifacts_cycle_id_cycles"),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
        sa.UniqueConstraint("fingerprint", "digest", name="uq_artifacts_fingerprint_digest"),
    )
    op.create_index("ix_artifacts_digest", "artifacts", ["digest"], unique=False)
    op.create_index("ix_artifacts_kind", "artifacts", ["kind"], unique=False)
    op.create_table(
        "dialogues",
        _id(),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("tranche", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=True),
        sa.Column("rater_id", sa.BigInteger(), nullable=True),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("identity_digest", sa.Text(), nullable=True),
        sa.Column("split_key", sa.Text(), nullable=True),
        sa.Column("pinned_split", sa.Text(), nullable=True),
        sa.Column("system", sa.Text(), nullable=True),
        sa.Column("client_key", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("pinned_split in ('held_out')", name=op.f("ck_dialogues_pinned_split")),
        sa.CheckConstraint("question in ('helpful', 'harmless', 'more_harmful')", name=op.f("ck_dialogues_question")),
        sa.CheckConstraint(
            "task in ('helpful', 'red_team', 'red_team_choose_best', 'model_comparison', 'import')",
            name=op.f("ck_dialogues_task"),
        ),
        sa.CheckConstraint("tranche in ('base', 'rs', 'online', 'imported')", name=op.f("ck_dialogues_tranche")),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_dialogues_rater_id_raters"),
        sa.PrimaryKeyConstraint("id", name="pk_dialogues"),
        sa.UniqueConstraint("identity_digest", name="uq_dialogues_identity_digest"),
        sa.UniqueConstraint("rater_id", "client_key", name="uq_dialogues_rater_id_client_key"),
    )
    op.create_index(
        "ix_dialogues_pinned",
        "dialogues",
        ["split_key"],
        unique=False,
        postgresql_where=sa.text("pinned_split is not null"),
    )
    op.create_index("ix_dialogues_split_key", "dialogues", ["split_key"], unique=False)
    op.create_table(
        "freezes",
        _id(),
        sa.Column("cycle_id", sa.BigInteger(), nullable=False),
        sa.Column("previous_id", sa.BigInteger(), nullable=True),
        sa.Column("num_fresh", sa.BigInteger(), nullable=False),
        sa.Column("cut_off", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_freezes_cycle_id_cycles"),
        sa.ForeignKeyConstraint(["previous_id"], ["freezes.id"], name="fk_freezes_previous_id_freezes"),
        sa.PrimaryKeyConstraint("id", name="pk_freezes"),
        sa.UniqueConstraint("cycle_id", name="uq_freezes_cycle_id"),
    )
    op.create_table(
        "quarantined_records",
        _id(),
        sa.Column("import_id", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("record_digest", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("extra", JSONB(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(["import_id"], ["imports.id"], name="fk_quarantined_records_import_id_imports"),
        sa.PrimaryKeyConstraint("id", name="pk_quarantined_records"),
        sa.UniqueConstraint("source", "record_digest", "ordinal", name="uq_quarantined_records_record"),
    )
    op.create_index("ix_quarantined_records_import_id", "quarantined_records", ["import_id"], unique=False)
    op.create_table(
        "decisions",
        _id(),
        sa.Column("cycle_id", sa.BigInteger(), nullable=True),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("reasons", JSONB(none_as_null=True), nullable=False),
        sa.Column("evidence", JSONB(none_as_null=True), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("decision in ('promote', 'refuse')", name=op.f("ck_decisions_decision")),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_decisions_cycle_id_cycles"),
        sa.ForeignKeyConstraint(["snapshot_id"], ["artifacts.id"], name="fk_decisions_snapshot_id_artifacts"),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
    )
    op.create_index("ix_decisions_cycle_id", "decisions", ["cycle_id"], unique=False)
    op.create_table(
        "evaluations",
        _id(),
        sa.Column("cycle_id", sa.BigInteger(), nullable=True),
        sa.Column("subject_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("artifact_id", sa.BigInteger(), nullable=True),
        sa.Column("numbers", JSONB(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint(
            "kind in ('preference_model', 'orientation', 'policy', 'best_of_n', 'elo')",
            name=op.f("ck_evaluations_kind"),
        ),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name="fk_evaluations_artifact_id_artifacts"),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_evaluations_cycle_id_cycles"),
        sa.ForeignKeyConstraint(["subject_id"], ["artifacts.id"], name="fk_evaluations_subject_id_artifacts"),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
    )
    op.create_index("ix_evaluations_cycle_id", "evaluations", ["cycle_id"], unique=False)
    op.create_index("ix_evaluations_subject_id", "evaluations", ["subject_id"], unique=False)
    op.create_table(
        "lineage_edges",
        sa.Column("child_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("child_id <> parent_id", name=op.f("ck_lineage_edges_no_loop")),
        sa.ForeignKeyConstraint(["child_id"], ["artifacts.id"], name="fk_lineage_edges_child_id_artifacts"),
        sa.ForeignKeyConstraint(["parent_id"], ["artifacts.id"], name="fk_lineage_edges_parent_id_artifacts"),
        sa.PrimaryKeyConstraint("child_id", "role", name="pk_lineage_edges"),
    )
    op.create_index("ix_lineage_edges_parent_id", "lineage_edges", ["parent_id"], unique=False)
    op.create_table(
        "messages",
        _id(),
        sa.Column("dialogue_id", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("candidate_id", sa.BigInteger(), nullable=True),
        sa.Column("client_key", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("role in ('system', 'user', 'assistant')", name=op.f("ck_messages_role")),
        sa.ForeignKeyConstraint(["dialogue_id"], ["dialogues.id"], name="fk_messages_dialogue_id_dialogues"),
        sa.ForeignKeyConstraint(
            ["parent_id", "dialogue_id"],
            ["messages.id", "messages.dialogue_id"],
            name="fk_messages_parent_id_dialogue_id_messages",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        sa.UniqueConstraint("candidate_id", name="uq_messages_candidate_id"),
        sa.UniqueConstraint("dialogue_id", "client_key", name="uq_messages_dialogue_id_client_key"),
        sa.UniqueConstraint("id", "dialogue_id", name="uq_messages_id_dialogue_id"),
    )
    op.create_index("ix_messages_dialogue_id", "messages", ["dialogue_id"], unique=False)
    op.create_index("ix_messages_parent_id", "messages", ["parent_id"], unique=False)
    op.create_table(
        "pairings",
        _id(),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("contestant_a_id", sa.BigInteger(), nullable=False),
        sa.Column("contestant_b_id", sa.BigInteger(), nullable=False),
        sa.Column("weight", sa.Double(), server_default=sa.text("1"), nullable=False),
        sa.Column("cycle_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "task in ('helpful', 'red_team', 'red_team_choose_best', 'model_comparison', 'import')",
            name=op.f("ck_pairings_task"),
        ),
        sa.CheckConstraint("weight > 0", name=op.f("ck_pairings_weight")),
        sa.ForeignKeyConstraint(["contestant_a_id"], ["artifacts.id"], name="fk_pairings_contestant_a_id_artifacts"),
        sa.ForeignKeyConstraint(["contestant_b_id"], ["artifacts.id"], name="fk_pairings_contestant_b_id_artifacts"),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_pairings_cycle_id_cycles"),
        sa.PrimaryKeyConstraint("id", name="pk_pairings"),
    )
    op.create_index(
        "ix_pairings_active", "pairings", ["task"], unique=False, postgresql_where=sa.text("ended_at is null")
    )
    op.create_table(
        "stages",
        _id(),
        sa.Column("cycle_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("artifact_id", sa.BigInteger(), nullable=True),
        sa.Column("flow_run_id", sa.Text(), nullable=True),
        sa.Column("job_seconds", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state in ('running', 'done', 'found', 'failed')", name=op.f("ck_stages_state")),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name="fk_stages_artifact_id_artifacts"),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_stages_cycle_id_cycles"),
        sa.PrimaryKeyConstraint("id", name="pk_stages"),
    )
    op.create_index("ix_stages_cycle_id", "stages", ["cycle_id"], unique=False)
    op.create_table(
        "deployments",
        _id(),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle_id", sa.BigInteger(), nullable=True),
        sa.Column("decision_id", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_deployments_cycle_id_cycles"),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.id"], name="fk_deployments_decision_id_decisions"),
        sa.ForeignKeyConstraint(["snapshot_id"], ["artifacts.id"], name="fk_deployments_snapshot_id_artifacts"),
        sa.PrimaryKeyConstraint("id", name="pk_deployments"),
    )
    op.create_index("ix_deployments_snapshot_id", "deployments", ["snapshot_id"], unique=False)
    op.create_index(
        "uq_deployments_live",
        "deployments",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("ended_at is null"),
    )
    op.create_table(
        "pairs",
        _id(),
        sa.Column("dialogue_id", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), server_default="training", nullable=False),
        sa.Column("instruction_version", sa.Text(), nullable=True),
        sa.Column("pairing_id", sa.BigInteger(), nullable=True),
        sa.Column("client_key", sa.Text(), nullable=True),
        sa.Column("identity_digest", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("purpose in ('training', 'evaluation')", name=op.f("ck_pairs_purpose")),
        sa.CheckConstraint("question in ('helpful', 'harmless', 'more_harmful')", name=op.f("ck_pairs_question")),
        sa.ForeignKeyConstraint(["dialogue_id"], ["dialogues.id"], name="fk_pairs_dialogue_id_dialogues"),
        sa.ForeignKeyConstraint(["pairing_id"], ["pairings.id"], name="fk_pairs_pairing_id_pairings"),
        sa.ForeignKeyConstraint(
            ["parent_id", "dialogue_id"],
            ["messages.id", "messages.dialogue_id"],
            name="fk_pairs_parent_id_dialogue_id_messages",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_pairs"),
        sa.UniqueConstraint("dialogue_id", "client_key", name="uq_pairs_dialogue_id_client_key"),
        sa.UniqueConstraint("identity_digest", name="uq_pairs_identity_digest"),
    )
    op.create_index("ix_pairs_dialogue_id", "pairs", ["dialogue_id"], unique=False)
    op.create_index("ix_pairs_parent_id", "pairs", ["parent_id"], unique=False)
    op.create_table(
        "candidates",
        _id(),
        sa.Column("pair_id", sa.BigInteger(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("deployment_id", sa.BigInteger(), nullable=True),
        sa.Column("contestant", sa.Text(), nullable=True),
        sa.Column("history", JSONB(none_as_null=True), nullable=True),
        sa.Column("sampling", JSONB(none_as_null=True), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("reply_tokens", sa.BigInteger(), nullable=True),
        sa.Column("truncated", sa.Boolean(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("side in ('a', 'b')", name=op.f("ck_candidates_side")),
        sa.CheckConstraint("(text is null) = (completed_at is null)", name=op.f("ck_candidates_complete")),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployments.id"], name="fk_candidates_deployment_id_deployments"),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], name="fk_candidates_pair_id_pairs"),
        sa.ForeignKeyConstraint(["snapshot_id"], ["artifacts.id"], name="fk_candidates_snapshot_id_artifacts"),
        sa.PrimaryKeyConstraint("id", name="pk_candidates"),
        sa.UniqueConstraint("pair_id", "side", name="uq_candidates_pair_id_side"),
    )
    op.create_index("ix_candidates_snapshot_id", "candidates", ["snapshot_id"], unique=False)
    op.create_table(
        "comparisons",
        _id(),
        sa.Column("pair_id", sa.BigInteger(), nullable=False),
        sa.Column("rater_id", sa.BigInteger(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("strength", sa.BigInteger(), nullable=True),
        sa.Column("label_kind", sa.Text(), server_default="human", nullable=False),
        sa.Column("source_value", JSONB(none_as_null=True), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("import_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint(
            "(side = 'none') = (reason is not null) and reason in ('cant_tell', 'tie')",
            name=op.f("ck_comparisons_reason"),
        ),
        sa.CheckConstraint("label_kind in ('human', 'model')", name=op.f("ck_comparisons_label_kind")),
        sa.CheckConstraint("side <> 'none' or strength is null", name=op.f("ck_comparisons_strength_of_none")),
        sa.CheckConstraint("side in ('a', 'b', 'none')", name=op.f("ck_comparisons_side")),
        sa.CheckConstraint("strength between 1 and 4", name=op.f("ck_comparisons_strength")),
        sa.ForeignKeyConstraint(["import_id"], ["imports.id"], name="fk_comparisons_import_id_imports"),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], name="fk_comparisons_pair_id_pairs"),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name="fk_comparisons_rater_id_raters"),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
        sa.UniqueConstraint("pair_id", "rater_id", name="uq_comparisons_pair_id_rater_id"),
    )
    op.create_index("ix_comparisons_rater_id", "comparisons", ["rater_id"], unique=False)
    op.create_table(
        "fresh_comparisons",
        sa.Column("comparison_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name="fk_fresh_comparisons_comparison_id_comparisons"
        ),
        sa.PrimaryKeyConstraint("comparison_id", name="pk_fresh_comparisons"),
    )
    op.create_table(
        "frozen_comparisons",
        sa.Column("freeze_id", sa.BigInteger(), nullable=False),
        sa.Column("first_id", sa.BigInteger(), nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("first_id <= last_id", name=op.f("ck_frozen_comparisons_order")),
        sa.ForeignKeyConstraint(["freeze_id"], ["freezes.id"], name="fk_frozen_comparisons_freeze_id_freezes"),
        sa.PrimaryKeyConstraint("freeze_id", "first_id", name="pk_frozen_comparisons"),
        ExcludeConstraint((sa.text("int8range(first_id, last_id, '[]')"), "&&"), name="ex_frozen_comparisons_run"),
    )
    # Messages and candidates point at each other, so the second of the two constraints comes last.
    op.create_foreign_key("fk_messages_candidate_id_candidates", "messages", "candidates", ["candidate_id"], ["id"])


def downgrade() -> None:
    op.drop_constraint("fk_messages_candidate_id_candidates", "messages", type_="foreignkey")
    for table in reversed(TABLES):
        op.drop_table(table)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False)
