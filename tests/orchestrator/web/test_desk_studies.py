"""Studies at the desk: made, shown with what the platform needs, and ended, with the checks of the command."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from tests.orchestrator.web.browsing import Browser

Database = Callable[[], Session]
STUDY = {"platform": "prolific", "study": " abc ", "code": "C0DE", "comparisons": "3"}


def entered(feedback_url: str, person: str) -> int:
    browser = Browser(feedback_url)
    page = browser.get(f"/enter/prolific?PROLIFIC_PID={person}&STUDY_ID=abc&SESSION_ID=s-{person}")
    return browser.send(page, f"SESSION_ID=s-{person}").status_code


def test_a_study_is_made_entered_and_ended(admin: Browser, database: Database, feedback_url: str, live: str) -> None:
    page = admin.get("/desk/studies")
    assert f"{feedback_url}/enter/prolific?PROLIFIC_PID={{{{%PROLIFIC_PID%}}}}&STUDY_ID=" in unescape(page.text)
    assert f"{feedback_url}/enter/mturk?workerId=${{workerId}}&assignmentId=" in unescape(page.text)
    made = admin.send(page, "/desk/studies", **STUDY)
    assert "<code>abc</code>" in made.text
    assert "<code>C0DE</code>" in made.text
    assert entered(feedback_url, "ann") == 200
    ended = admin.send(made, "/end")
    assert "ended 20" in ended.text
    assert (entered(feedback_url, "ann"), entered(feedback_url, "ben")) == (200, 410)
    with database() as session:
        acts = session.scalars(select(t.OperatorAct).order_by(t.OperatorAct.id)).all()
        assert [(act.act, act.subject, act.actor) for act in acts] == [
            ("add_study", "study prolific/abc", "admin"),
            ("end_study", "study prolific/abc", "admin"),
        ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"platform": "post"}, "Platform 'post' is unknown; expected prolific or mturk"),
        ({"study": " "}, "A study needs the platform's id"),
        ({"code": ""}, "A study needs the platform's id"),
        ({"comparisons": "0"}, "at least 1 comparison"),
        ({"comparisons": "ten"}, "Choices are 'ten'"),
        ({"study": "there"}, "Study 'there' of prolific is there already"),
    ],
)
def test_what_the_command_refuses_the_desk_refuses(
    admin: Browser, database: Database, changed: dict[str, str], said: str
) -> None:
    page = admin.get("/desk/studies")
    admin.send(page, "/desk/studies", **STUDY | {"study": "there"})
    refused = admin.send(page, "/desk/studies", **STUDY | changed)
    assert (refused.status_code, said in unescape(refused.text)) == (422, True)
    with database() as session:
        assert session.scalars(select(t.Study.external_id)).all() == ["there"]


def test_a_study_ends_once(admin: Browser) -> None:
    made = admin.send(admin.get("/desk/studies"), "/desk/studies", **STUDY)
    admin.send(made, "/end")
    again = admin.send(made, "/end")
    assert (again.status_code, "no open study" in again.text) == (422, True)
