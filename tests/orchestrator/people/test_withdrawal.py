"""A rater who withdrew is in no set frozen afterwards; the sets before stay as they were, and are listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine
from orchestrator import cli
from orchestrator.config import CycleConfig
from orchestrator.cycles import record as cycles
from orchestrator.data import comparison_set, freeze
from orchestrator.data.exporting import ExportRequest, export_file
from orchestrator.people.raters import RaterError, create_rater, rater_by_token, renew_token, set_status
from orchestrator.people.withdrawal import touched, withdraw
from tests.db.rows import add_comparison, add_cycle, add_rater, close
from tests.folders import contents
from tests.orchestrator.data.set_files import build, excluded, frozen, records
from tests.orchestrator.store.loop import Loop


def test_later_sets_leave_the_rater_out_and_earlier_ones_stay_the_same(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_set, "SHARD_COMPARISONS", 2)
    with Session(engine) as session, session.begin():
        ann, ben = add_rater(session, "ann"), add_rater(session, "ben")
        ann_id, ben_id = ann.id, ben.id
        made = [str(add_comparison(session, text, rater=ann if text == "a" else ben).id) for text in "abcd"]
    first = frozen(engine)
    build(engine, tmp_path / "one", first)
    with Session(engine) as session, session.begin():
        assert withdraw(session, "ann", "asked by mail")
    # The first set was frozen before: built now it still has the same bytes.
    build(engine, tmp_path / "again", first)
    assert contents(tmp_path / "again") == contents(tmp_path / "one")
    with Session(engine) as session, session.begin():
        late = str(add_comparison(session, "e", rater=session.get_one(t.Rater, ann_id)).id)
        made.append(str(add_comparison(session, "f", rater=session.get_one(t.Rater, ben_id)).id))
    second = frozen(engine)
    results = build(engine, tmp_path / "two", second, tmp_path / "one")
    build(engine, tmp_path / "anew", second)
    assert contents(tmp_path / "two") == contents(tmp_path / "anew")
    assert [record["id"] for record in records(tmp_path / "two")] == made[1:]
    assert excluded(tmp_path / "two") == {made[0]: "withdrawn", late: "withdrawn"}
    assert results.excluded == {"withdrawn": 2}
    # Only the shard that held a comparison of theirs was written again.
    names = sorted(path.name for path in (tmp_path / "one" / "shards").iterdir())
    same = [(tmp_path / "one/shards" / name).samefile(tmp_path / "two/shards" / name) for name in names]
    assert same == [False, True]
    # The third week has nothing new to leave out, so it takes the second's shards over.
    third = frozen(engine)
    build(engine, tmp_path / "three", third, tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "two" / "shards").iterdir())
    assert all((tmp_path / "two/shards" / name).samefile(tmp_path / "three/shards" / name) for name in names)


def test_a_withdrawal_in_flight_during_a_freeze_holds_from_the_next(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        add_comparison(session, rater=add_rater(session, "ann"))
    with Session(engine) as late:
        withdraw(late, "ann")
        first = frozen(engine)
        late.commit()
    build(engine, tmp_path / "one", first)
    assert len(records(tmp_path / "one")) == 1
    build(engine, tmp_path / "two", frozen(engine))
    assert records(tmp_path / "two") == []


def test_it_is_final_and_ends_what_the_rater_may_do(session: Session) -> None:
    _, token = create_rater(session, "ann")
    assert withdraw(session, "ann", "first")
    assert not withdraw(session, "ann", "second")
    assert session.scalars(select(t.Withdrawal.note)).all() == ["first"]
    assert rater_by_token(session, token) is None
    for act in (lambda: set_status(session, "ann", "normal"), lambda: renew_token(session, "ann")):
        with pytest.raises(RaterError, match="withdrew, for good"):
            act()
    with pytest.raises(RaterError, match="no rater 'bob'"):
        withdraw(session, "bob")


def test_what_it_touches_is_listed_before_and_after_and_membership_follows_the_freeze(session: Session) -> None:
    loop = Loop(session)
    before = touched(session, loop.anna.id)
    assert (before.comparisons, before.withdrawn_at, before.note) == (2, None, None)
    assert [found["id"] for found in before.artifacts] == [loop.set.id, loop.pm.id, loop.snapshot.id]
    assert [found["id"] for found in before.deployments] == [loop.deployment.id]
    served = session.scalars(select(t.Candidate.id).where(t.Candidate.deployment_id == loop.deployment.id)).all()
    assert sorted(served) == list(before.reply_ids)
    assert len(served) == 2
    withdraw(session, "anna", "asked")
    cycle = add_cycle(session)
    freeze.freeze(session, cycle.id)
    close(session, cycle)
    after = touched(session, loop.anna.id)
    assert (after.artifacts, after.deployments, after.reply_ids) == (
        before.artifacts, before.deployments, before.reply_ids,
    )  # fmt: skip
    assert after.note == "asked"
    assert after.withdrawn_at is not None
    assert touched(session, loop.ben.id).artifacts == ()


def test_exports_and_the_count_of_fresh_comparisons_leave_them_out(
    database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    engine = make_engine(database_url)
    with Session(engine) as session, session.begin():
        add_comparison(session, "a", rater=add_rater(session, "ann"))
        add_comparison(session, "b", rater=add_rater(session, "ben"))
        withdraw(session, "ann")
    with Session(engine) as session:
        for format_name in ("own", "hh"):
            report = export_file(session, home / f"{format_name}.jsonl", ExportRequest(format=format_name))
            assert (report.read, report.exported, report.reasons) == (2, 1, {"withdrawn": 1})
    engine.dispose()
    assert (
        cycles.fresh_comparisons(CycleConfig.model_validate({"name": "test", "initial_policy": {"path": "any"}})).found
        == 1
    )


def test_the_commands_say_what_was_done(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    with Session(engine) as session, session.begin():
        loop = Loop(session)
        ids = loop.set.id, loop.deployment.id
    assert cli.main(["rater", "touched", "anna"]) == 0
    shown = capsys.readouterr().out
    assert "anna: 2 comparisons, takes part. They went into:" in shown
    assert "2 served replies came of it" in shown
    assert cli.main(["rater", "withdraw", "anna", "--note", "by mail", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["handle"], found["note"], found["comparisons"]) == ("anna", "by mail", 2)
    assert (found["artifacts"][0]["id"], found["deployments"][0]["id"]) == ids
    assert len(found["reply_ids"]) == 2
    assert cli.main(["rater", "withdraw", "anna"]) == 0
    assert "withdrew on 20" in capsys.readouterr().out
    assert cli.main(["rater", "status", "anna", "normal"]) == 2
    assert "withdrew, for good" in capsys.readouterr().err
    assert cli.main(["rater", "withdraw", "nobody"]) == 2
