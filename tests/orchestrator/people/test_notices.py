"""Announcements reach every rater until they end; problem reports reach the desk, once each."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator import cli
from orchestrator.people import access
from orchestrator.people.raters import create_rater
from tests.orchestrator.web.browsing import Browser, forms

Database = Callable[[], Session]


@pytest.fixture
def new_rater_browser(feedback_url: str, database: Database, live: str):
    """Browsers of raters, by handle."""
    browsers: list[Browser] = []

    def make(handle: str) -> Browser:
        with database() as session, session.begin():
            cookie = access.begin_session(session, create_rater(session, handle)[0].id)
        browser = Browser(feedback_url)
        browser.client.cookies.set("orchestrator_session", cookie)
        browsers.append(browser)
        return browser

    yield make
    for browser in browsers:
        browser.client.close()


def test_an_announcement_is_read_by_every_rater_until_it_ends(
    admin: Browser, new_rater_browser: Callable[[str], Browser]
) -> None:
    ann, ben = new_rater_browser("ann"), new_rater_browser("ben")
    assert "Announcement" not in ann.get("/").text
    page = admin.send(admin.get("/desk/notices"), "/announcements", content="No work **on Friday**. <script>x</script>")
    assert page.url.path == "/desk/notices"
    for rater in (ann, ben):
        home = rater.get("/").text
        assert "No work <strong>on Friday</strong>." in home
        assert "<script>x" not in home
    empty = admin.send(page, "/announcements", content="  ")
    assert (empty.status_code, "Nothing was written" in empty.text) == (422, True)
    after = admin.send(page, "/end")
    assert "on Friday" not in after.text
    assert "on Friday" not in ann.get("/").text


def test_a_report_from_a_dialogue_reaches_the_desk_once_and_is_seen_to(
    admin: Browser, new_rater_browser: Callable[[str], Browser], database: Database
) -> None:
    ann, ben = new_rater_browser("ann"), new_rater_browser("ben")
    dialogue = ann.begin()
    link = f"/problem?dialogue={dialogue.url.path.rpartition('/')[2]}"
    assert f'href="{link}"' in dialogue.text
    form = ann.get(link)
    for _ in range(2):  # a double click sends the same form twice
        sent = ann.send(form, "/problem", content="The <b>left</b> reply was cut off.")
        assert "Thank you" in sent.text
        assert dialogue.url.path in sent.text
    assert ben.get(link).status_code == 404
    assert ben.client.post("/problem", data=forms(ben.get("/problem"))[-1].values | {
        "content": "x", "dialogue": dialogue.url.path.rpartition("/")[2]
    }).status_code == 404  # fmt: skip
    assert ann.send(ann.get("/problem"), "/problem", content=" ").status_code == 422
    assert ann.send(ann.get("/problem"), "/problem", content="x" * 4001).status_code == 422
    with database() as session:
        (report,) = session.scalars(select(t.ProblemReport))
        assert str(report.dialogue_id) == dialogue.url.path.rpartition("/")[2]
    page = admin.get("/desk/notices")
    assert "The &lt;b&gt;left&lt;/b&gt; reply was cut off." in page.text
    assert f'href="/desk/dialogues/{report.dialogue_id}"' in page.text
    after = admin.send(page, "/handled")
    assert "None waits." in after.text
    assert "Seen to lately" in after.text


def test_the_commands_announce_and_list_reports(
    database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert cli.main(["announce", "list"]) == 0
    assert "No announcements." in capsys.readouterr().out
    assert cli.main(["announce", "add", "Pause until noon"]) == 0
    assert capsys.readouterr().out == "announcement: 1\n"
    assert cli.main(["announce", "end", "1"]) == 0
    assert cli.main(["announce", "end", "1"]) == 0
    assert cli.main(["announce", "end", "2"]) == 2
    assert "no announcement 2" in capsys.readouterr().err
    with database() as session, session.begin():
        rater, _ = create_rater(session, "ann")
        session.add(t.ProblemReport(rater_id=rater.id, client_key="k", content="It\nhangs."))
    assert cli.main(["problem", "list"]) == 0
    assert "It hangs." in capsys.readouterr().out
    assert cli.main(["problem", "handled", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["problem", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["problem", "list", "--handled", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["rater"], listed["content"]) == ("ann", "It\nhangs.")
    assert cli.main(["problem", "handled", "7"]) == 2
