"""Raters and their tokens, through the functions and through the command."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import session as open_session
from orchestrator import cli
from orchestrator.people.raters import RaterError, create_rater, rater_by_token, renew_token, set_status


def test_a_token_is_known_by_its_digest_alone(session: Session) -> None:
    rater, token = create_rater(session, "ann", platform="prolific")
    assert rater.token_digest is not None
    assert token not in (rater.token_digest, rater.handle)
    assert len(token) >= 43  # 32 bytes in base64
    found = rater_by_token(session, token)
    assert found is not None
    assert (found.id, found.handle, found.banned) == (rater.id, "ann", False)
    assert rater_by_token(session, token + "x") is None
    assert rater_by_token(session, rater.token_digest) is None


def test_a_new_token_ends_the_old_one(session: Session) -> None:
    _, old = create_rater(session, "ann")
    new = renew_token(session, "ann")
    assert rater_by_token(session, old) is None
    assert rater_by_token(session, new) is not None


def test_what_cannot_be_is_refused_in_words(session: Session) -> None:
    create_rater(session, "ann")
    with pytest.raises(RaterError, match="'ann' exists already"):
        create_rater(session, "ann")
    with pytest.raises(RaterError, match="not usable"):
        create_rater(session, "two words")
    with pytest.raises(RaterError, match="expected human or synthetic"):
        create_rater(session, "bob", kind="robot")
    with pytest.raises(RaterError, match="no rater 'carl'"):
        set_status(session, "carl", "banned")
    with pytest.raises(RaterError, match="expected one of select, normal, banned"):
        set_status(session, "ann", "nice")


def test_the_command_adds_lists_and_bans(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert cli.main(["rater", "list"]) == 0
    assert "No raters yet" in capsys.readouterr().out
    assert cli.main(["rater", "add", "ann", "--json"]) == 0
    token = json.loads(capsys.readouterr().out)["token"]
    assert cli.main(["rater", "add", "ann"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["rater", "status", "ann", "banned"]) == 0
    capsys.readouterr()
    assert cli.main(["rater", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["handle"], row["status"], row["num_comparisons"]) for row in listed] == [("ann", "banned", 0)]
    with open_session(database_url) as session:
        found = rater_by_token(session, token)
        assert found is not None
        assert found.banned
        assert session.scalars(select(t.Rater.token_digest)).one() != token
