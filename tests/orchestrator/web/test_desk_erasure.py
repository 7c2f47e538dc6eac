"""Erasing at the desk: what it reaches is shown, the handle is typed again, it goes on where it was cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.people import erasure
from orchestrator.people.raters import create_rater
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.web.app import FeedbackConfig
from tests.db.rows import add_comparison, add_cycle
from tests.orchestrator.web.browsing import Browser
from tests.waiting import wait_for

Database = Callable[[], Session]
REASON = {"reason": "a letter of 3 May"}


@pytest.fixture
def config(database_url: str, policy_url: str, tmp_path: Path) -> FeedbackConfig:
    plain = FeedbackConfig(database_url, policy_url, admin_token="the admin's token")
    return replace(plain, artifact_url=f"file://{tmp_path / 'store'}", cache=tmp_path / "cache")


@pytest.fixture
def rater_id(database: Database) -> int:
    with database() as session, session.begin():
        rater, _ = create_rater(session, "ann")
        add_comparison(session, "my landlord is Quentin", rater=rater)
        return rater.id


def done(database: Database, rater_id: int) -> bool:
    with database() as session:
        row = session.scalars(select(t.Erasure).where(t.Erasure.rater_id == rater_id)).one_or_none()
        return row is not None and row.completed_at is not None


def test_a_rater_is_erased_after_a_second_look_and_by_name(admin: Browser, database: Database, rater_id: int) -> None:
    path = f"/desk/raters/{rater_id}/erase"
    page = admin.get(path)
    assert "ann becomes erased-" in page.text
    assert "the texts of 1, those of others" in page.text
    for wrong, said in (
        ({"handle": "anne"}, "Nothing was changed: type 'ann'"),
        ({"handle": "ann", "reason": " "}, "No reason was given"),
        ({"handle": "ann", "reason": "Ann wrote a letter"}, "The note names 'ann'"),
    ):
        refused = admin.send(page, path, **REASON | wrong)
        assert (refused.status_code, said in unescape(refused.text)) == (422, True)
    with database() as session:
        assert session.scalars(select(t.Erasure)).all() == []
    assert admin.send(page, path, handle="ann", **REASON).url.path == path
    wait_for("the erasure is complete", lambda: done(database, rater_id))
    after = admin.get(path).text
    assert "Erased on 20" in after
    assert "by admin" in after
    assert "a letter of 3 May" in after
    with database() as session:
        assert session.get_one(t.Rater, rater_id).handle == f"erased-{rater_id}"
        (act,) = session.scalars(select(t.OperatorAct))
        # The record of it names nobody who was erased.
        assert (act.actor, act.act, act.subject, act.details) == ("admin", "erase", f"rater {rater_id}", {})


def test_what_people_did_with_a_rater_names_them_by_id(admin: Browser, database: Database, rater_id: int) -> None:
    admin.send(admin.get("/desk/work"), "/desk/groups", name="writers")
    joined = admin.send(admin.get("/desk/work"), "/desk/groups/join", group="writers", handle="ann")
    assert joined.status_code == 200
    with database() as session:
        assert [act.subject for act in session.scalars(select(t.OperatorAct).order_by(t.OperatorAct.id))] == [
            "group writers",
            f"rater {rater_id}, group writers",
        ]


def test_an_open_cycle_hinders_it_and_the_page_says_so(admin: Browser, database: Database, rater_id: int) -> None:
    path = f"/desk/raters/{rater_id}/erase"
    page = admin.get(path)
    with database() as session, session.begin():
        add_cycle(session)
    refused = admin.send(page, path, handle="ann", **REASON)
    assert (refused.status_code, "is open and may hold the texts" in refused.text) == (422, True)
    assert "Erase for good" not in admin.get(path).text


def test_what_was_cut_off_says_why_and_goes_on(
    admin: Browser, database: Database, rater_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/desk/raters/{rater_id}/erase"

    def away(*_: object) -> None:
        raise OSError("the store does not answer")

    monkeypatch.setattr(erasure, "_rewrite_artifacts", away)
    admin.send(admin.get(path), path, handle="ann", **REASON)
    wait_for("the page says that it stopped", lambda: "Stopped before its end" in admin.get(path).text)
    stopped = admin.get(path)
    assert "OSError: the store does not answer" in stopped.text
    assert not done(database, rater_id)
    monkeypatch.undo()
    admin.send(stopped, "/go-on")
    wait_for("the erasure is complete", lambda: done(database, rater_id))
    with database() as session:
        acts = session.scalars(select(t.OperatorAct.act).order_by(t.OperatorAct.id)).all()
        assert acts == ["erase", "go_on_erasing"]


def test_whoever_erases_elsewhere_is_seen_and_waited_for(
    admin: Browser, database: Database, rater_id: int, tmp_path: Path
) -> None:
    path = f"/desk/raters/{rater_id}/erase"
    with database() as session, session.begin():
        erasure_id = erasure.begin(session, "ann", "a letter").id
    with database() as elsewhere:
        lock = {"key": erasure.ERASING, "id": erasure_id}
        elsewhere.execute(text("select pg_advisory_lock(:key, :id)"), lock)
        assert "Being erased since" in admin.get(path).text
        elsewhere.execute(text("select pg_advisory_unlock(:key, :id)"), lock)
    stopped = admin.get(path)
    assert "Stopped before its end" in stopped.text
    with database() as elsewhere:
        elsewhere.execute(text("select pg_advisory_lock(:key, 0)"), lock)
        admin.send(stopped, "/go-on")
        assert "Being erased since" in admin.get(path).text
        assert not done(database, rater_id)
        elsewhere.execute(text("select pg_advisory_unlock(:key, 0)"), lock)
    wait_for("the erasure is complete", lambda: done(database, rater_id))
    store = ArtifactStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")
    with database() as session:
        assert erasure.go_on(session.get_bind(), store, erasure_id).rater_id == rater_id  # type: ignore[arg-type]
