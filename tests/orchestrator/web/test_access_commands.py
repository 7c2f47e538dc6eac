"""`orchestrator invite` and `orchestrator study`: links that work, lists that count, errors that say what to do."""

from __future__ import annotations

import json
import re

import pytest

from db import tables as t
from db.session import session as open_session
from orchestrator import cli
from orchestrator.people import access
from orchestrator.people.raters import create_rater
from tests.db.rows import add_comparison


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command; gives its status, output and errors."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_FEEDBACK_URL", "https://rate.example/")

    def run(*words: str) -> tuple[int, str, str]:
        status = cli.main(list(words))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_an_invitation_is_made_counted_and_ended(command, database_url: str) -> None:
    assert "No invitations yet" in command("invite", "list")[1]
    _, printed, _ = command("invite", "add", "the May course", "--max-uses", "2", "--days", "7")
    found = re.search(r"https://rate\.example/join/(\S+)", printed)
    assert found is not None
    assert "can't be shown again" in printed
    with open_session(database_url) as session:
        access.join(session, found.group(1))
    (row,) = json.loads(command("invite", "list", "--json")[1])
    assert (row["label"], row["joined"], row["max_uses"], row["ended_at"]) == ("the May course", 1, 2, None)
    assert found.group(1) not in json.dumps(row)
    assert command("invite", "end", str(row["id"]))[0] == 0
    (row,) = json.loads(command("invite", "list", "--json")[1])
    assert row["ended_at"] is not None


def test_unusable_invitations_are_refused_in_words(command) -> None:
    assert command("invite", "add", " ")[::2] == (2, "error: An invitation needs a label that says whom it is for.\n")
    status, _, errors = command("invite", "add", "x", "--max-uses", "0")
    assert (status, "expected at least 1" in errors) == (2, True)
    status, _, errors = command("invite", "end", "99")
    assert (status, "There is no invitation 99" in errors) == (2, True)


def test_a_study_is_added_counted_and_ended(command, database_url: str) -> None:
    _, printed, _ = command("study", "add", "prolific", "abc", "--code", "C0DE", "--comparisons", "3")
    assert "https://rate.example/enter/prolific?PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}" in printed
    _, printed, _ = command("study", "add", "mturk", "h1", "--code", "M")
    assert "/enter/mturk?workerId=${workerId}&assignmentId=${assignmentId}&hitId=${hitId}" in printed
    with open_session(database_url) as session:
        access.enter(session, "prolific", "abc", "person", "submission")
    rows = json.loads(command("study", "list", "--json")[1])
    assert [(row["study"], row["came"], row["finished"]) for row in rows] == [("abc", 1, 0), ("h1", 0, 0)]
    assert command("study", "end", "prolific", "abc")[0] == 0
    status, _, errors = command("study", "end", "prolific", "abc")
    assert (status, "no open study 'abc'" in errors) == (2, True)
    status, _, errors = command("study", "add", "prolific", "abc", "--code", "C")
    assert (status, "is there already" in errors) == (2, True)
    with open_session(database_url) as session:
        acts = session.query(t.OperatorAct).order_by(t.OperatorAct.id).all()
        assert [f"{act.act} {act.subject} {act.identity}" for act in acts] == [
            "add_study study prolific/abc machine",
            "add_study study mturk/h1 machine",
            "end_study study prolific/abc machine",
        ]


def test_a_rater_is_shown_read_and_signed_out(command, database_url: str) -> None:
    with open_session(database_url) as session:
        rater, _ = create_rater(session, "ann")
        comparison = add_comparison(session, "Why is the sky blue?", rater=rater)
        dialogue = session.get_one(t.Dialogue, session.get_one(t.Pair, comparison.pair_id).dialogue_id)
        cookie = access.begin_session(session, rater.id)
        dialogue_id = dialogue.id
    status, printed, _ = command("rater", "show", "ann")
    assert status == 0
    assert "comparisons: 1" in printed
    assert "agreement: -" in printed
    shown = json.loads(command("rater", "show", "ann", "--json")[1])
    assert (shown["figures"]["decided"], shown["times"][0]["comparisons"]) == (1, 1)
    read = json.loads(command("rater", "read", str(dialogue_id))[1])
    assert read["messages"][0]["content"] == "Why is the sky blue?"
    (pair,) = read["messages"][0]["pairs"]
    assert (pair["chosen"], pair["id"], pair["comparison"]) == (comparison.side, comparison.pair_id, comparison.id)
    # From a reply that was read to what it came from.
    came_from = command("lineage", f"candidate:{pair['replies']['b']}")[1]
    assert came_from.startswith(f"reply {pair['replies']['b']} (side b of pair {pair['id']})")
    assert "signed out: ann" in command("rater", "sign-out", "ann")[1]
    with open_session(database_url) as session:
        assert access.signed_in(session, cookie) is None
    assert command("rater", "show", "nobody")[0] == command("rater", "read", "999")[0] == 2
