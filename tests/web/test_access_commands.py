"""`orchestrator invite` and `orchestrator study`: links that work, lists that count, errors that say what to do."""

from __future__ import annotations

import json
import re

import pytest

from db.session import session as open_session
from orchestrator import cli
from orchestrator.web import access


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
