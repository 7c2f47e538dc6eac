"""Who may call what: every route of the feedback app and each kind of caller, with the status each gets.

A route that is not in the table fails the test, so that none is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.conversations import contestants, pairings
from orchestrator.people import access
from orchestrator.people.instruction_versions import shipped
from orchestrator.people.queues import add_group, join_group
from orchestrator.people.raters import create_rater, set_status
from orchestrator.serving.keys import create_key
from orchestrator.web.app import FeedbackConfig, create_app
from orchestrator.web.desk_access import desk_cookie
from tests.orchestrator.web.browsing import Browser
from tests.orchestrator.web.rating import ask, pair_of
from tests.orchestrator.web.routes import routes_of
from tests.orchestrator.web.stand_in import StandIn

Database = Callable[[], Session]

ADMIN_TOKEN = "the admin's token"  # of the fixture `config`
NOBODY, RATER, BANNED, OTHER = "nobody", "rater", "banned rater", "other rater"
ADMIN, KEY = "admin", "API key"
CALLERS = (NOBODY, RATER, BANNED, OTHER)
OUTSIDERS = (ADMIN, KEY)
"""Neither opens what is a rater's: each gets what nobody gets, but for the metrics."""

# The statuses, in the order of CALLERS. What is another rater's is 404, as if it were not there.
OPEN = (200, 200, 200, 200)
SIGNED_IN = (401, 200, 403, 200)
OWN = (401, 200, 403, 404)

Case = tuple[str, str, dict[str, str] | None, tuple[int, int, int, int]]

# Method and path as the route has it, then the form or body (None: none), then who gets what.
PAGES: list[Case] = [
    ("GET", "/static/{name}", None, OPEN),
    ("GET", "/join/{token}", None, (200, 200, 403, 200)),
    ("POST", "/join/{token}", {}, OPEN),
    ("GET", "/sign-in", None, (200, 200, 403, 200)),
    ("POST", "/sign-in", {"token": "wrong"}, (401, 401, 401, 401)),
    ("GET", "/enter/{platform}", None, OPEN),
    ("POST", "/enter/{platform}", {}, OPEN),
    ("GET", "/", None, SIGNED_IN),
    ("GET", "/tasks/{task}/{question}", None, SIGNED_IN),
    ("POST", "/tasks/{task}/{question}", {"key": "k1", "agree": shipped("helpful").version}, SIGNED_IN),
    ("GET", "/dialogues/{dialogue_id}", None, OWN),
    ("GET", "/pairs/{pair_id}/stream", None, OWN),
    ("GET", "/pairs/{pair_id}/replies", None, OWN),
    # A pair that the rater compares cannot be edited any more: the edit comes first, of a pair of its own.
    ("POST", "/pairs/{pair_id}/edit", {"side": "a", "content": "better"}, OWN),
    ("POST", "/pairs/{pair_id}/comparison", {"choice": "a4"}, (401, 409, 403, 404)),
    ("POST", "/dialogues/{dialogue_id}/messages", {"key": "k2", "content": "x", "parent_id": "leaf"}, OWN),
    ("POST", "/dialogues/{dialogue_id}/pairs", {"key": "k3"}, OWN),
    ("POST", "/dialogues/{dialogue_id}/leave", {"key": "k4"}, OWN),
    ("POST", "/dialogues/{dialogue_id}/end", {}, OWN),
    ("GET", "/problem", None, SIGNED_IN),
    # About a dialogue of the rater's.
    ("POST", "/problem", {"key": "k5", "content": "broken", "dialogue": "own"}, OWN),
    ("GET", "/write", None, SIGNED_IN),
    # Only the one who writes: here the other rater is in the writers' group, and the dialogue is the first one's.
    ("GET", "/write/{candidate_id}", None, (401, 404, 403, 200)),
    ("POST", "/write/{candidate_id}", {"content": "from a person"}, (401, 404, 403, 200)),
    ("POST", "/sign-out", {}, SIGNED_IN),
]
API: list[Case] = [
    ("GET", "/health", None, OPEN),
    ("GET", "/metrics", None, (401, 403, 403, 403)),
    ("POST", "/api/dialogues", {"task": "helpful"}, (401, 201, 403, 201)),
    ("POST", "/api/dialogues/{dialogue_id}/messages", {"content": "x", "client_key": "k", "parent_id": "leaf"},
     (401, 201, 403, 404)),
    ("POST", "/api/messages/{message_id}/pairs", {"client_key": "k"}, (401, 201, 403, 404)),
    ("GET", "/api/pairs/{pair_id}", None, OWN),
    ("GET", "/api/pairs/{pair_id}/stream", None, OWN),
    ("POST", "/api/pairs/{pair_id}/comparison", {"side": "a"}, (401, 201, 403, 404)),
    ("POST", "/api/dialogues/{dialogue_id}/end", None, OWN),
]  # fmt: skip


class Callers:
    """The same four callers at both doors: a browser's session, and a program's token."""

    def __init__(self, url: str, database: Database) -> None:
        self.browsers: dict[str, Browser] = {}
        self.tokens: dict[str, str] = {}
        self.csrf: dict[str, str] = {}
        for caller in CALLERS + OUTSIDERS:
            browser = self.browsers[caller] = Browser(url)
            browser.client.follow_redirects = False
            # As the page's script asks: a form that worked answers 200 and says where to go.
            browser.client.headers["Accept"] = "application/json"
            self.csrf[caller] = "0"
            if caller == ADMIN:
                browser.client.cookies.set("orchestrator_desk", desk_cookie(ADMIN_TOKEN))
                self.tokens[caller] = ADMIN_TOKEN
            if caller == KEY:
                with database() as session, session.begin():
                    self.tokens[caller] = create_key(session, "a program")
                browser.client.headers["Authorization"] = f"Bearer {self.tokens[caller]}"
            if caller == NOBODY or caller in OUTSIDERS:
                continue
            with database() as session, session.begin():
                rater, self.tokens[caller] = create_rater(session, caller.replace(" ", "-"))
                cookie = access.begin_session(session, rater.id)
            browser.client.cookies.set("orchestrator_session", cookie)
            self.csrf[caller] = access.csrf_token(cookie)
        with database() as session, session.begin():
            set_status(session, "banned-rater", "banned")

    def close(self) -> None:
        for browser in self.browsers.values():
            browser.client.close()


@pytest.fixture
def callers(feedback_url: str, database: Database, live: str) -> Iterator[Callers]:
    callers = Callers(feedback_url, database)
    yield callers
    callers.close()


def expected_of(caller: str, path: str, statuses: tuple[int, int, int, int]) -> int:
    """What the table says that a caller gets."""
    if path == "/metrics" and caller in OUTSIDERS:
        return 200 if caller == ADMIN else 403  # a token, but not the admin's
    return statuses[0] if caller in OUTSIDERS else statuses[CALLERS.index(caller)]


def test_every_route_is_in_the_table(config: FeedbackConfig) -> None:
    app = create_app(config)
    routes = {
        (method, route.path) for route in routes_of(app.routes) for method in route.methods or set() if method != "HEAD"
    }
    # The desk's are in test_desk.py.
    routes = {(method, path) for method, path in routes if not path.startswith("/desk")}
    assert {(method, path) for method, path, _, _ in PAGES + API} == routes


def things(callers: Callers, feedback_url: str, database: Database) -> dict[str, str]:
    """What the rater owns, and what links lead to."""
    client = httpx.Client(base_url=feedback_url, headers={"Authorization": f"Bearer {callers.tokens[RATER]}"})
    with client:
        dialogue_id, message_id = ask(client)
        pair_id = pair_of(client, message_id)["pair_id"]
    with database() as session, session.begin():
        _, token = access.create_invitation(session, "table")
        access.create_study(session, "prolific", "s", "C", 1)
        add_group(session, "writers")
        for member in (OTHER, BANNED):
            join_group(session, "writers", member.replace(" ", "-"))
        writers = contestants.add_writer(session, "people", "writers")
        pairings.open_pairing(session, "red_team", writers.id, writers.id)
    with httpx.Client(base_url=feedback_url, headers={"Authorization": f"Bearer {callers.tokens[RATER]}"}) as client:
        pair_of(client, ask(client, "red_team")[1], wait=False)
    with database() as session:
        candidate_id = session.scalar(select(func.max(t.Candidate.id)))
    return {
        "candidate_id": str(candidate_id),
        "dialogue_id": str(dialogue_id), "message_id": str(message_id), "pair_id": str(pair_id), "token": token,
        "platform": "prolific", "name": "app.css", "task": "helpful", "question": "helpful",
    }  # fmt: skip


@pytest.mark.parametrize("caller", CALLERS + OUTSIDERS)
def test_the_pages_answer_each_caller_as_the_table_says(
    callers: Callers, feedback_url: str, database: Database, stand_in: StandIn, caller: str
) -> None:
    found = things(callers, feedback_url, database)
    client = callers.browsers[caller].client
    answers, expected = {}, {}
    leaf = ""
    for method, path, form, statuses in PAGES:
        query = "?STUDY_ID=s&PROLIFIC_PID=p&SESSION_ID=v" if path.startswith("/enter") else ""
        where = path.format(**found) + query
        if method == "GET":
            answer = client.get(where)
        else:
            values = {"csrf": callers.csrf[caller]} | (form or {})
            if values.get("parent_id") == "leaf":
                values["parent_id"] = leaf
            if values.get("dialogue") == "own":
                values["dialogue"] = found["dialogue_id"]
            entering = path.startswith(("/join", "/enter"))
            # These begin a session; the caller's own must stay the one that the table is about.
            kept = dict(client.cookies)
            answer = client.post(where, data=values)
            if entering:
                client.cookies.clear()
                client.cookies.update(kept)
        if path.endswith("/edit") and answer.status_code == 200:
            leaf = _leaf(database)
        answers[f"{method} {path}"] = answer.status_code
        expected[f"{method} {path}"] = expected_of(caller, path, statuses)
    assert answers == expected


def _leaf(database: Database) -> str:
    with database() as session:
        return str(session.scalar(select(func.max(t.Message.id))))


@pytest.mark.parametrize("caller", CALLERS + OUTSIDERS)
def test_the_api_answers_each_caller_as_the_table_says(
    callers: Callers, feedback_url: str, database: Database, caller: str
) -> None:
    found = things(callers, feedback_url, database)
    headers = {"Authorization": f"Bearer {callers.tokens[caller]}"} if caller != NOBODY else {}
    owner = {"Authorization": f"Bearer {callers.tokens[RATER]}"}
    answers, expected = {}, {}
    with httpx.Client(base_url=feedback_url, timeout=20) as client:
        chosen = client.post(f"/api/pairs/{found['pair_id']}/comparison", json={"side": "a"}, headers=owner)
        leaf = chosen.json()["continue_from"]
        for method, path, body, statuses in API:
            where = path.format(**found)
            given = None if body is None else {k: leaf if v == "leaf" else v for k, v in body.items()}
            answer = client.request(method, where, json=given, headers=headers)
            answers[f"{method} {path}"] = answer.status_code
            status = expected_of(caller, path, statuses)
            # The choice was made above: the rater's is the same one again.
            same = path.endswith("/comparison") and caller == RATER
            expected[f"{method} {path}"] = 200 if same else status
    assert answers == expected


@pytest.mark.parametrize("guess", ["0", "-1", "99999999999999999999", "1e3", "abc", "1;drop table raters", "../1"])
def test_guessed_ids_lead_nowhere(callers: Callers, guess: str) -> None:
    client = callers.browsers[OTHER].client
    for path in (f"/dialogues/{guess}", f"/pairs/{guess}/replies", f"/pairs/{guess}/stream"):
        assert client.get(path).status_code in (404, 422), path
