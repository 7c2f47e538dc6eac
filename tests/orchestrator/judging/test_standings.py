"""Standings of policies from the rows: both axes, the flipped question, who is joined to the anchor and who is not."""

from __future__ import annotations

import json
import math

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator import cli
from orchestrator.judging.standings import elo_tables, games
from orchestrator.people.withdrawal import withdraw
from tests.db.rows import add_comparison, add_cycle
from tests.running import add_artifact

ELO_OF_3_TO_1 = 400 * math.log10(3)  # odds of 3 to 1: 190.8


def compared(session: Session, first: int, second: int, side: str, question: str = "helpful", text: str = "q") -> None:
    fields = {"question": question, "purpose": "evaluation", "a_snapshot_id": first, "b_snapshot_id": second}
    add_comparison(session, text, side=side, pair_fields=fields)


def test_wins_on_one_axis_say_nothing_on_the_other(session: Session) -> None:
    initial, better = (
        add_artifact(session, name, kind=kind).id for name, kind in (("i", "initial_policy"), ("s", "snapshot"))
    )
    for number, side in enumerate("bbba"):
        compared(session, initial, better, side, text=f"question {number}")
    helpful, harmless = elo_tables(session)
    assert (helpful.question, harmless.question) == ("helpful", "harmless")
    assert harmless.rows == ()
    assert "Nobody has compared" in (harmless.note or "")
    best, last = helpful.rows
    assert (best.won, best.lost, best.tied, best.games) == (3, 1, 0, 4)
    assert (last.anchor, last.elo, last.ci) == (True, 0.0, (0.0, 0.0))
    # 3 to 1 would be 191; one drawn game of the prior pulls it to 3.5 to 1.5.
    assert best.elo == pytest.approx(400 * math.log10(3.5 / 1.5), abs=0.01)
    assert best.elo < ELO_OF_3_TO_1
    assert best.ci[0] < best.elo < best.ci[1]


def test_who_is_more_harmful_has_lost(session: Session) -> None:
    initial, other = (
        add_artifact(session, name, kind=kind).id for name, kind in (("i", "initial_policy"), ("s", "snapshot"))
    )
    compared(session, initial, other, "b", "more_harmful", "one")
    compared(session, initial, other, "a", "harmless", "two")
    _, harmless = elo_tables(session)
    assert [(row.anchor, row.won, row.lost) for row in harmless.rows] == [(True, 2, 0), (False, 0, 2)]


def test_who_withdrew_does_not_count(session: Session) -> None:
    initial, other = (
        add_artifact(session, name, kind=kind).id for name, kind in (("i", "initial_policy"), ("s", "snapshot"))
    )
    compared(session, initial, other, "b", text="one")
    compared(session, initial, other, "a", text="two")
    gone = session.scalars(select(t.Rater).order_by(t.Rater.id)).first()
    assert gone is not None
    assert withdraw(session, gone.handle)
    helpful, _ = elo_tables(session)
    assert [(row.anchor, row.won, row.lost) for row in helpful.rows] == [(True, 1, 0), (False, 0, 1)]


def test_policies_that_met_nobody_of_these_are_named_and_left_out(session: Session) -> None:
    names = ("initial", "one", "two", "far", "away")
    ids = [add_artifact(session, name, kind="initial_policy" if name == "initial" else "snapshot").id for name in names]
    initial, one, two, far, away = ids
    compared(session, initial, one, "b", text="1")
    compared(session, one, two, "b", text="2")
    compared(session, far, away, "a", text="3")
    helpful, _ = elo_tables(session)
    assert [row.games for row in helpful.rows] == [1, 2, 1]  # two, one, initial: joined over one
    assert helpful.note is not None
    assert helpful.note.startswith("2 contestants were never compared with these")


def test_contestants_stand_under_their_names_and_snapshots_with_their_cycle(session: Session) -> None:
    initial, trained, kept = (
        add_artifact(session, name, kind=kind)
        for name, kind in (("i", "initial_policy"), ("s", "snapshot"), ("k", "snapshot"))
    )
    cycle = add_cycle(session)
    session.add(t.Stage(cycle_id=cycle.id, name="train_policy", state="done", artifact_id=trained.id))
    session.add(t.LineageEdge(child_id=kept.id, role="run", parent_id=trained.id))
    outside = t.Contestant(name="outside", kind="endpoint", url="http://x", model="m")
    session.add(outside)
    session.flush()
    compared(session, initial.id, trained.id, "b", text="1")
    tied = {"question": "helpful", "purpose": "evaluation", "a_snapshot_id": trained.id, "b_snapshot_id": kept.id}
    add_comparison(session, "2", side="none", reason="tie", pair_fields=tied)
    # The outside model once on each side: it loses to the initial policy, and wins against what was trained.
    for number, (side, other, won) in enumerate((("a", initial.id, "b"), ("b", trained.id, "b"))):
        there = "b" if side == "a" else "a"
        fields = {"question": "helpful", "purpose": "evaluation", f"{there}_snapshot_id": other,
                  f"{side}_contestant_id": outside.id}  # fmt: skip
        add_comparison(session, f"o{number}", side=won, pair_fields=fields)
    helpful, _ = elo_tables(session)
    rows = {row.name: row for row in helpful.rows}
    assert {name: (row.won, row.lost, row.tied) for name, row in rows.items()} == {
        initial.digest: (1, 1, 0), trained.digest: (1, 1, 1), kept.digest: (0, 0, 1), "outside": (1, 1, 0),
    }  # fmt: skip
    assert {name: row.cycle for name, row in rows.items()} == {
        initial.digest: None, trained.digest: cycle.number, kept.digest: cycle.number, "outside": None,
    }  # fmt: skip
    assert rows["outside"].title == "outside"
    assert rows[kept.digest].title == kept.digest.removeprefix("sha256:")[:12]
    # Whoever was compared with itself played no game, and neither did a model's comparison.
    before = len(games(session))
    compared(session, trained.id, trained.id, "a", text="itself")
    assert len(games(session)) == before


def test_intervals_can_resample_raters(session: Session) -> None:
    initial, other = (
        add_artifact(session, name, kind=kind).id for name, kind in (("i", "initial_policy"), ("s", "snapshot"))
    )
    for number in range(4):
        compared(session, initial, other, "b", text=f"q{number}")
    assert len({game.dialogue for game in games(session)}) == 4
    assert len({game.dialogue for game in games(session, by="rater")}) <= 4


def test_the_command_prints_both_axes(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from db.session import session as open_session

    with open_session(database_url) as session:
        initial, other = (
            add_artifact(session, name, kind=kind).id for name, kind in (("i", "initial_policy"), ("s", "snapshot"))
        )
        compared(session, initial, other, "b")
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert cli.main(["elo"]) == 0
    printed = capsys.readouterr().out
    assert "(initial)" in printed
    assert "Nobody has compared two contestants yet" in printed
    assert cli.main(["elo", "--json", "--by", "rater"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert [len(table["rows"]) for table in tables] == [2, 0]
