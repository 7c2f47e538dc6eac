"""What the database itself holds: append-only rows, one answer per pair and rater, complete pairs, one open cycle."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db import errors
from db import tables as t
from db.errors import translate, typed
from tests.db.rows import (
    NOW,
    add_artifact,
    add_comparison,
    add_cycle,
    add_dialogue,
    add_pair,
    add_rater,
    close,
)


@pytest.fixture
def rows(session: Session) -> Session:
    """A session in which every table has a row."""
    comparison = add_comparison(session)
    add_comparison(session)  # a second one, so that the queue is not empty after the first is frozen
    cycle = add_cycle(session)
    artifact, other = add_artifact(session), add_artifact(session)
    frozen = t.Freeze(cycle_id=cycle.id, num_fresh=1)
    decision = t.Decision(snapshot_id=artifact.id, decision="promote", reasons=[], evidence={}, decided_by="gates")
    counts = {"num_imported": 0, "num_already_there": 0}
    brought = t.Import(
        file_name="f", file_digest="d", source="s", format="hh", num_read=1, num_quarantined=1, started_at=NOW, **counts
    )
    contestants = [t.Contestant(name=one.digest, kind="policy", snapshot_id=one.id) for one in (artifact, other)]
    withdrawal = t.Withdrawal(rater_id=comparison.rater_id, note="by mail")
    session.add_all([frozen, decision, brought, withdrawal, *contestants])
    session.flush()
    session.add_all(
        [
            t.FrozenComparison(freeze_id=frozen.id, first_id=comparison.id, last_id=comparison.id),
            t.FrozenWithdrawal(withdrawal_id=withdrawal.id, freeze_id=frozen.id),
            t.LineageEdge(child_id=other.id, role="initial", parent_id=artifact.id),
            t.Evaluation(subject_id=artifact.id, kind="policy", numbers={}),
            t.Deployment(snapshot_id=artifact.id, decision_id=decision.id),
            t.CycleRun(cycle_id=cycle.id, flow_run_id="r"),
            t.Approval(
                cycle_id=cycle.id,
                snapshot_id=artifact.id,
                why="asked",
                reasons=[],
                evidence={},
                expires_at=cycle.started_at,
            ),
            t.Operator(name="Ada", token_digest="d"),
            t.OperatorAct(actor="Ada", identity="proven", via="desk", act="erase", subject="rater 1", details={}),
            t.InstructionVersion(task="helpful", version="helpful-2", text="Choose.", created_by="Ada"),
            t.Pairing(task="model_comparison", contestant_a_id=contestants[0].id, contestant_b_id=contestants[1].id),
            stage := t.Stage(cycle_id=cycle.id, name="train_policy"),
            t.QuarantinedRecord(
                import_id=brought.id, source="s", line=1, reason="nul", detail="", record="", record_digest="d"
            ),
        ]
    )
    session.flush()
    session.add_all(
        [
            t.StageProgress(stage_id=stage.id, phase="step", step=1),
            t.StageMetrics(stage_id=stage.id, line=0, numbers={}),
        ]
    )
    session.flush()
    return session


APPEND_ONLY = (
    "approvals",
    "artifacts",
    "comparisons",
    "contestants",
    "cycle_runs",
    "decisions",
    "evaluations",
    "freezes",
    "frozen_comparisons",
    "frozen_withdrawals",
    "imports",
    "instance_identity",
    "instruction_versions",
    "lineage_edges",
    "messages",
    "operator_acts",
    "pairs",
    "quarantined_records",
    "stage_metrics",
    "withdrawals",
)
NEVER_DELETED = (
    *APPEND_ONLY, "candidates", "cycles", "deployments", "dialogues", "operators", "pairings", "raters",
    "stage_progress", "stages",
)  # fmt: skip


def first_column(table: str) -> str:
    return str(next(iter(t.Base.metadata.tables[table].columns)).name)


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_no_row_is_changed_where_rows_are_append_only(rows: Session, table: str) -> None:
    column = first_column(table)
    with pytest.raises(errors.AppendOnly, match=f"UPDATE refused: rows of {table} are append-only"), translate():
        rows.execute(text(f"update {table} set {column} = {column}"))


@pytest.mark.parametrize("table", NEVER_DELETED)
def test_no_row_is_deleted(rows: Session, table: str) -> None:
    with pytest.raises(errors.AppendOnly, match=f"DELETE refused: rows of {table} are append-only"), translate():
        rows.execute(text(f"delete from {table}"))


@pytest.mark.parametrize("table", sorted(t.Base.metadata.tables))
def test_no_table_is_emptied(rows: Session, table: str) -> None:
    with pytest.raises(errors.AppendOnly, match="TRUNCATE refused"), translate():
        rows.execute(text(f"truncate {table} cascade"))


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("candidates", "seed = 5"),
        ("candidates", "text = 'another reply'"),
        ("dialogues", "source = 'elsewhere'"),
        ("dialogues", "split_key = 'ffff'"),
        ("dialogues", "pinned_split = null, split_key = null"),
        ("deployments", "started_at = now()"),
        ("pairings", "weight = 2"),
        ("cycles", "number = 99"),
        ("cycles", "config = '{\"a\": 1}'"),
        ("stages", "name = 'other'"),
        ("raters", "handle = 'other'"),
    ],
)
def test_what_was_written_once_stays(rows: Session, table: str, change: str) -> None:
    with pytest.raises(errors.AppendOnly, match="UPDATE refused"), translate():
        rows.execute(text(f"update {table} set {change}"))


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("dialogues", "ended_at = now()"),
        ("deployments", "ended_at = now()"),
        ("pairings", "ended_at = now()"),
        ("cycles", "state = 'promoted', ended_at = now()"),
        ("stages", "state = 'done', ended_at = now(), job_seconds = 1.5"),
    ],
)
def test_what_ends_ends_once(rows: Session, table: str, change: str) -> None:
    rows.execute(text(f"update {table} set {change}"))
    rows.execute(text(f"update {table} set ended_at = ended_at"))  # nothing changes, nothing is refused
    with pytest.raises(errors.AppendOnly), translate():
        rows.execute(text(f"update {table} set ended_at = ended_at + interval '1 second'"))


def test_a_rater_may_be_banned_and_given_another_token(rows: Session) -> None:
    rows.execute(text("update raters set status = 'banned' where id = (select min(id) from raters)"))
    rows.execute(text("update raters set token_digest = 'x' where id = (select min(id) from raters)"))


def test_a_reply_is_written_once_at_completion(session: Session) -> None:
    _, (message,) = add_dialogue(session, "Hello")
    _, a, _ = add_pair(session, message, complete=False)
    fill = text("update candidates set text = :text, completed_at = now(), reply_tokens = 2 where id = :id")
    session.execute(fill, {"text": "Hi.", "id": a.id})
    with pytest.raises(errors.AppendOnly, match=r"candidates\.text is written once"), translate():
        session.execute(fill, {"text": "Ho.", "id": a.id})


@pytest.mark.parametrize("complete", ["none", "a"])
def test_a_choice_needs_two_complete_replies(session: Session, complete: str) -> None:
    _, (message,) = add_dialogue(session, "Hello")
    pair, a, _ = add_pair(session, message, complete=False)
    if complete == "a":
        a.text, a.completed_at = "Hi.", NOW
        session.flush()
    with pytest.raises(errors.IncompletePair, match=f"Pair {pair.id} does not have two complete replies"), translate():
        add_comparison(session, pair=pair)


def test_one_bad_pair_among_many_refuses_the_whole_statement(session: Session) -> None:
    good, rater = add_comparison(session).pair_id, add_rater(session).id
    _, (message,) = add_dialogue(session, "Hello")
    bad, _, _ = add_pair(session, message, complete=False)
    with pytest.raises(errors.IncompletePair), translate():
        session.execute(
            text("insert into comparisons (pair_id, rater_id, side) values (:good, :rater, 'a'), (:bad, :rater, 'a')"),
            {"good": good, "bad": bad.id, "rater": rater},
        )


def test_each_comparison_is_queued_once(session: Session) -> None:
    ids = [add_comparison(session).id for _ in range(3)]
    assert sorted(session.scalars(select(t.FreshComparison.comparison_id))) == ids


def refused(session: Session, *rows: Any) -> errors.RefusedByDatabase:
    """The typed error with which the database refuses the rows."""
    session.add_all(rows)
    with pytest.raises(errors.RefusedByDatabase) as caught, translate():
        session.flush()
    session.rollback()
    return caught.value


def test_a_rater_answers_a_pair_once(session: Session) -> None:
    comparison = add_comparison(session)
    again = t.Comparison(pair_id=comparison.pair_id, rater_id=comparison.rater_id, side="b")
    error = refused(session, again)
    assert type(error) is errors.DuplicateComparison
    assert error.constraint == "uq_comparisons_pair_id_rater_id"


def test_one_cycle_is_open(session: Session) -> None:
    close(session, add_cycle(session))
    add_cycle(session)
    assert type(refused(session, t.Cycle(number=10**6, name="x", config={}))) is errors.OpenCycleExists


def test_one_snapshot_is_live(session: Session) -> None:
    artifact = add_artifact(session)
    decision = t.Decision(snapshot_id=artifact.id, decision="promote", reasons=[], evidence={}, decided_by="x")
    session.add(decision)
    session.flush()
    live = [t.Deployment(snapshot_id=artifact.id, decision_id=decision.id) for _ in range(2)]
    assert type(refused(session, *live)) is errors.LiveDeploymentExists


def test_a_retry_with_the_same_client_key_is_recognised(session: Session) -> None:
    rater = add_rater(session)
    dialogue, (message,) = add_dialogue(session, "Hello", rater_id=rater.id, client_key="d")
    add_pair(session, message, client_key="p")
    session.add(t.Message(dialogue_id=dialogue.id, role="user", content="x", client_key="m"))
    session.commit()
    again = t.Message(dialogue_id=dialogue.id, role="user", content="y", client_key="m")
    assert type(refused(session, again)) is errors.DuplicateMessage
    pair = t.Pair(dialogue_id=dialogue.id, parent_id=message.id, question="helpful", client_key="p")
    assert type(refused(session, pair)) is errors.DuplicatePair
    other = t.Dialogue(source="feedback", tranche="online", task="helpful", rater_id=rater.id, client_key="d")
    assert type(refused(session, other)) is errors.DuplicateDialogue


def test_a_handle_is_taken_once(session: Session) -> None:
    rater = add_rater(session)
    assert type(refused(session, t.Rater(handle=rater.handle, kind="human"))) is errors.DuplicateRater


def test_a_comparison_is_in_one_freeze(session: Session) -> None:
    first = t.Freeze(cycle_id=add_cycle(session, "promoted").id, num_fresh=0)
    second = t.Freeze(cycle_id=add_cycle(session, "promoted").id, num_fresh=0)
    session.add_all([first, second])
    session.flush()
    session.add(t.FrozenComparison(freeze_id=first.id, first_id=10, last_id=20))
    session.flush()
    overlapping = t.FrozenComparison(freeze_id=second.id, first_id=20, last_id=30)
    assert type(refused(session, overlapping)) is errors.AlreadyFrozen


def test_a_cycle_freezes_once(session: Session) -> None:
    cycle = add_cycle(session)
    twice = [t.Freeze(cycle_id=cycle.id, num_fresh=0) for _ in range(2)]
    assert type(refused(session, *twice)) is errors.AlreadyFrozen


def test_a_parent_lies_in_the_same_dialogue(session: Session) -> None:
    _, (message,) = add_dialogue(session, "here")
    other, _ = add_dialogue(session, "there")
    session.commit()
    stray = t.Message(dialogue_id=other.id, parent_id=message.id, role="assistant", content="x")
    assert type(refused(session, stray)) is errors.UnknownReference
    pair = t.Pair(dialogue_id=other.id, parent_id=message.id, question="helpful")
    assert type(refused(session, pair)) is errors.UnknownReference


@pytest.mark.parametrize(
    "fields",
    [
        {"side": "c"},
        {"side": "none"},  # without saying why
        {"side": "a", "reason": "tie"},
        {"side": "none", "reason": "bored"},
        {"side": "a", "strength": 5},
        {"side": "a", "strength": 0},
        {"side": "none", "reason": "tie", "strength": 1},
        {"side": "a", "label_kind": "guess"},
        {"side": None},
    ],
)
def test_an_impossible_comparison_is_refused(session: Session, fields: dict[str, Any]) -> None:
    pair_id, rater_id = add_comparison(session).pair_id, add_rater(session).id
    session.commit()
    assert type(refused(session, t.Comparison(pair_id=pair_id, rater_id=rater_id, **fields))) is errors.InvalidRow


def test_every_error_named_for_a_constraint_has_one(session: Session) -> None:
    """A constraint that was renamed would leave its error without a cause."""
    query = text("select conname from pg_constraint union select indexname from pg_indexes")
    assert set(errors.BY_CONSTRAINT) <= set(session.scalars(query))


def test_what_is_not_a_refusal_stays_what_it_is(session: Session) -> None:
    with pytest.raises(DBAPIError) as caught, translate():
        session.execute(text("select 1 / 0"))
    assert typed(caught.value) is None
