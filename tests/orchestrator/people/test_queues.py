"""Queues of work: who is offered what, on the home page and when a dialogue is begun."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from sqlalchemy.orm import Session

from orchestrator import cli
from orchestrator.conversations import contestants, pairings
from orchestrator.people import access, queues
from orchestrator.people.queues import EVERYTHING, QueueError
from orchestrator.people.raters import RaterIdentity, create_rater, set_status
from tests.orchestrator.web.browsing import Browser
from tests.orchestrator.web.rating import ask, ok, pair_of
from tests.running import add_artifact


def _rater(session: Session, handle: str) -> RaterIdentity:
    rater, _ = create_rater(session, handle)
    return RaterIdentity(rater.id, rater.handle, rater.status)


def test_a_queue_is_offered_to_its_group_alone_while_it_is_open(session: Session) -> None:
    ann, bob = _rater(session, "ann"), _rater(session, "bob")
    assert tuple(queues.offers(session, ann)) == EVERYTHING
    queues.add_group(session, "red team")
    queues.join_group(session, "red team", "ann")
    queues.add_queue(session, "helpful", "helpful")
    red = queues.add_queue(session, "red_team", "more_harmful", group="red team", weight=2, goal=1)
    queues.add_queue(session, "model_comparison", "harmless", status="select")
    assert queues.offers(session, ann) == [("red_team", "more_harmful"), ("helpful", "helpful")]
    assert queues.offers(session, bob) == [("helpful", "helpful")]
    queues.leave_group(session, "red team", "ann")
    assert queues.offers(session, ann) == [("helpful", "helpful")]
    queues.join_group(session, "red team", "ann")
    queues.close_queue(session, red.id)
    assert queues.offers(session, ann) == [("helpful", "helpful")]


def test_what_cannot_be_is_refused_in_words(session: Session) -> None:
    with pytest.raises(QueueError, match="does not ask what is 'harmless'"):
        queues.add_queue(session, "helpful", "harmless")
    with pytest.raises(QueueError, match="no group 'x'"):
        queues.add_queue(session, "helpful", "helpful", group="x")
    with pytest.raises(QueueError, match="goal is 0; expected at least 1"):
        queues.add_queue(session, "helpful", "helpful", goal=0)
    with pytest.raises(QueueError, match="no queue 99"):
        queues.close_queue(session, 99)


def test_a_dialogue_of_a_closed_queue_goes_on_but_no_other_begins(
    rater: httpx.Client, database: Callable[[], Session]
) -> None:
    first = {"task": "helpful", "client_key": "one"}
    begun = rater.post("/api/dialogues", json=first)
    with database() as session, session.begin():
        queues.add_queue(session, "red_team", "more_harmful")
    assert rater.post("/api/dialogues", json=first).json() == begun.json()
    refused = rater.post("/api/dialogues", json={"task": "helpful", "client_key": "two"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_offered")


def test_a_goal_that_is_reached_offers_nothing_more(rater: httpx.Client, database: Callable[[], Session]) -> None:
    with database() as session, session.begin():
        queues.add_queue(session, "helpful", "helpful", goal=1)
    _, message_id = ask(rater)
    ok(rater.post(f"/api/pairs/{pair_of(rater, message_id)['pair_id']}/comparison", json={"side": "a"}))
    refused = rater.post("/api/dialogues", json={"task": "helpful"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_offered")


def test_the_home_page_shows_what_is_offered(feedback_url: str, live: str, database: Callable[[], Session]) -> None:
    browser = Browser(feedback_url)
    with database() as session, session.begin():
        rater, _ = create_rater(session, "ann")
        browser.client.cookies.set("orchestrator_session", access.begin_session(session, rater.id))
        queues.add_queue(session, "model_comparison", "harmless", status="normal")
        queues.add_queue(session, "red_team", "more_harmful", status="select")
    home = browser.get("/").text
    assert "/tasks/model_comparison/harmless" in home
    assert "/tasks/red_team/more_harmful" not in home
    assert "/tasks/helpful/helpful" not in home
    with database() as session, session.begin():
        set_status(session, "ann", "select")
    assert "/tasks/red_team/more_harmful" in browser.get("/").text
    browser.client.close()


def test_models_are_offered_for_comparison_only_where_some_meet(
    feedback_url: str, live: str, database: Callable[[], Session]
) -> None:
    browser = Browser(feedback_url)
    with database() as session, session.begin():
        rater, _ = create_rater(session, "ann")
        browser.client.cookies.set("orchestrator_session", access.begin_session(session, rater.id))
    home = browser.get("/").text
    assert "/tasks/helpful/helpful" in home
    assert "/tasks/model_comparison/" not in home
    with database() as session, session.begin():
        other = contestants.policy(session, add_artifact(session, "other").id)
        pairings.open_pairing(session, "model_comparison", other.id, other.id)
    assert "/tasks/model_comparison/harmless" in browser.get("/").text
    browser.client.close()


def test_the_commands_open_and_close(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)

    def run(*words: str) -> tuple[int, str]:
        status = cli.main(list(words))
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    assert "everything is offered" in run("queue", "list")[1]
    assert run("rater", "add", "ann")[0] == run("group", "add", "red team")[0] == 0
    assert run("group", "join", "red team", "ann") == (0, "ann is in red team\n")
    assert run("group", "list")[1].splitlines()[1].split() == ["red", "team", "1"]
    assert run("queue", "add", "red_team", "more_harmful", "--group", "red team", "--goal", "50")[0] == 0
    assert run("queue", "list")[1].splitlines()[1].split()[1:] == [
        "red_team",
        "more_harmful",
        "red",
        "team",
        "-",
        "1",
        "50",
        "0",
        "-",
    ]
    assert run("queue", "close", "1") == (0, "closed: 1\n")
    assert run("group", "leave", "red team", "ann")[0] == 0
    assert run("group", "leave", "red team", "ann")[0] == 2
    status, errors = run("queue", "add", "helpful", "harmless")
    assert (status, "expected one of" in errors) == (2, True)
