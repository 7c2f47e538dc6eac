"""Instructions at the desk: looked at before they are saved, agreed to anew by raters, told apart by version."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.people import access, instruction_versions
from orchestrator.people.instruction_versions import InstructionsChanged, InstructionsError, shipped
from orchestrator.people.raters import create_rater
from tests.orchestrator.web.browsing import Browser

Database = Callable[[], Session]
FIRST = shipped("helpful")
HELPFUL = "/desk/instructions/helpful"


def write(admin: Browser, text: str, page: str, key: str = FIRST.key) -> httpx.Response:
    """Look at a text that begins from a version; the page with what raters would see."""
    form = admin.get(f"{HELPFUL}/{key}/edit")
    return admin.send(form, f"{HELPFUL}/preview", text=text, whole=page)


def test_a_text_is_looked_at_then_saved_and_then_agreed_to_anew(
    admin: Browser, database: Database, feedback_url: str, live: str
) -> None:
    with database() as session, session.begin():
        rater, token = create_rater(session, "ann")
        cookie = access.begin_session(session, rater.id)
    ann = Browser(feedback_url)
    ann.client.cookies.set("orchestrator_session", cookie)
    assert "/dialogues/" in str(ann.begin().url)
    seen = write(admin, "Ask for\r\nhelp.", "## Be brief\r\n\r\nTwo **turns** <script>are</script> enough.")
    assert "<strong>turns</strong> &lt;script&gt;" in seen.text
    with database() as session:
        assert session.scalars(select(t.InstructionVersion)).all() == []
    saved = admin.send(seen, HELPFUL)
    assert saved.url.path == "/desk/instructions"
    with database() as session:
        row = session.scalars(select(t.InstructionVersion)).one()
        assert (row.task, row.version, row.created_by) == ("helpful", "helpful-2", "admin")
        told = instruction_versions.current(session, "helpful")
        assert (told.text, told.page) == ("Ask for help.", "## Be brief\n\nTwo **turns** <script>are</script> enough.")
        act = session.scalars(select(t.OperatorAct)).one()
        assert (act.actor, act.act, act.subject) == ("admin", "write_instructions", "instructions helpful-2")
    # Whoever agreed to the first is asked again, once; what is begun goes by the new version.
    again = ann.get("/tasks/helpful/helpful")
    assert "Two <strong>turns</strong>" in again.text
    assert 'name="agree" value="helpful-2"' in again.text
    refused = ann.send(again, "/tasks/helpful/helpful", agree="helpful-1")
    assert refused.url.path == "/tasks/helpful/helpful"
    ann.write(ann.begin(), "How do I boil an egg?")
    assert 'name="agree"' not in ann.get("/tasks/helpful/helpful").text
    headers = {"Authorization": f"Bearer {token}"}
    begun = httpx.post(f"{feedback_url}/api/dialogues", json={"task": "helpful"}, headers=headers).json()
    assert begun["instructions"] == {"version": "helpful-2", "text": "Ask for help."}
    with database() as session:
        agreed = session.scalars(select(t.Consent.instruction_version).order_by(t.Consent.id)).all()
        assert agreed == ["helpful-1", "helpful-2"]
        assert session.scalars(select(t.Pair.instruction_version)).one() == "helpful-2"


def test_every_version_stays_readable_with_who_and_when(admin: Browser, database: Database) -> None:
    with database() as session, session.begin():
        second = instruction_versions.save(session, "helpful", FIRST.key, "Second gist.", "Second.", by="Ada")
        instruction_versions.save(session, "helpful", second.key, "Third gist.", "Third.", by="Grace")
    listed = admin.get("/desk/instructions").text
    assert listed.index("written by Grace on 20") < listed.index("written by Ada on 20") < listed.index("shipped with")
    assert "Second gist." in admin.get(f"{HELPFUL}/helpful-2").text
    assert FIRST.text in admin.get(f"{HELPFUL}/helpful-1.md").text
    # The next one may begin from any of them.
    assert "Second gist.</textarea>" in admin.get(f"{HELPFUL}/helpful-2/edit").text
    assert admin.get(f"{HELPFUL}/helpful-4").status_code == 404
    assert admin.get("/desk/instructions/kind/helpful-1.md").status_code == 404


@pytest.mark.parametrize(
    ("text", "page", "said"),
    [
        ("", FIRST.page, "The gist is empty"),
        (FIRST.text, " \n", "The whole text is empty"),
        (FIRST.text.replace(" ", "\n"), FIRST.page + "\r\n", "Nothing is changed: this is what helpful-1 says"),
        ("x" * 1001, FIRST.page, "The gist has 1,001 characters; at most 1,000 fit"),
    ],
)
def test_an_empty_or_unchanged_text_is_refused_and_kept_in_the_form(
    admin: Browser, database: Database, text: str, page: str, said: str
) -> None:
    answer = write(admin, text, page)
    assert (answer.status_code, said in answer.text) == (422, True)
    assert "Save as the new version" not in answer.text
    assert page.strip()[:20] in answer.text
    with database() as session, pytest.raises(InstructionsError, match=said):
        instruction_versions.save(session, "helpful", FIRST.key, text, page, by="Ada")


def test_of_two_who_write_at_once_the_second_is_told_and_keeps_the_text(admin: Browser, database: Database) -> None:
    mine = write(admin, "My gist.", "My text.")
    early = admin.get(f"{HELPFUL}/{FIRST.key}/edit")
    with database() as session, session.begin():
        instruction_versions.save(session, "helpful", FIRST.key, "Hers.", "Her text.", by="Ada")
    told = admin.send(mine, HELPFUL)
    assert told.status_code == 422
    assert "Not saved: helpful-2 is what raters read by now, written by Ada" in told.text
    assert "My text.</textarea>" in told.text
    # Also who had not looked at it yet when the other saved.
    assert "Not saved: helpful-2" in admin.send(early, f"{HELPFUL}/preview", text="My gist.", whole="My text.").text
    seen = admin.send(told, f"{HELPFUL}/preview", text="My gist.", whole="My text.")
    admin.send(seen, HELPFUL)
    with database() as session:
        assert instruction_versions.current(session, "helpful").version == "helpful-3"
        assert [act.subject for act in session.scalars(select(t.OperatorAct))] == ["instructions helpful-3"]


def test_of_many_who_save_in_one_moment_exactly_one_does(database: Database) -> None:
    def save(number: int) -> str:
        with database() as session, session.begin():
            instruction_versions.save(session, "helpful", FIRST.key, f"Gist {number}.", "Text.", by=f"writer {number}")
            return "saved"

    def tried(number: int) -> str:
        try:
            return save(number)
        except InstructionsChanged as error:
            return str(error)[:20]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(tried, range(8)))
    assert sorted(answers) == ["Not saved: helpful-2"] * 7 + ["saved"]


def test_a_later_release_leaves_the_desks_text_where_it_is(
    admin: Browser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database() as session, session.begin():
        instruction_versions.save(session, "helpful", FIRST.key, "Ours.", "Our text.", by="Ada")
    release = instruction_versions.Instructions("helpful", "helpful-2", "Theirs.", "Their text.")
    monkeypatch.setattr(
        instruction_versions, "shipped", lambda question: release if question == "helpful" else shipped(question)
    )
    assert "shipped since, not in use" in admin.get("/desk/instructions").text
    assert "Their text." in admin.get(f"{HELPFUL}/helpful-2.md").text
    with database() as session, session.begin():
        now = instruction_versions.current(session, "helpful")
        assert (now.version, now.text) == ("helpful-2", "Ours.")
        assert (
            instruction_versions.save(session, "helpful", now.key, "Theirs.", "Both.", by="Ada").version == "helpful-3"
        )
