"""Too many requests are refused for a moment: of a rater, at both doors, and of an address that tries to sign in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import httpx
from sqlalchemy.orm import Session

from orchestrator.people import access
from orchestrator.people.raters import create_rater
from orchestrator.web.app import FeedbackConfig, create_app
from tests.orchestrator.web.browsing import Browser
from tests.orchestrator.web.rating import code_of
from tests.running import running


def test_a_rater_has_so_many_requests_and_the_others_theirs(
    config: FeedbackConfig, database: Callable[[], Session], live: str
) -> None:
    tokens, cookies = [], []
    with database() as session, session.begin():
        for handle in ("ann", "ben"):
            rater, token = create_rater(session, handle)
            tokens.append({"Authorization": f"Bearer {token}"})
            cookies.append(access.begin_session(session, rater.id))
    with running(create_app(replace(config, requests_per_minute=3))) as url, httpx.Client(base_url=url) as client:
        begin = {"task": "helpful"}
        answers = [client.post("/api/dialogues", json=begin, headers=tokens[0]) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
        assert code_of(answers[-1]) == (429, "rate_limited")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
        # The same rater's pages are the same rater; somebody else is not.
        ann, ben = Browser(url), Browser(url)
        for browser, cookie in ((ann, cookies[0]), (ben, cookies[1])):
            browser.client.cookies.set("orchestrator_session", cookie)
        refused = ann.get("/")
        assert (refused.status_code, "nothing is lost" in refused.text) == (429, True)
        assert ben.get("/").status_code == 200
        # What is no rater's business is not counted.
        assert {client.get("/health").status_code for _ in range(6)} == {200}


def test_an_address_has_so_many_attempts_to_sign_in(config: FeedbackConfig) -> None:
    with running(create_app(replace(config, sign_ins_per_minute=3))) as url, httpx.Client(base_url=url) as client:
        answers = [client.post("/sign-in", data={"token": "guess"}).status_code for _ in range(2)]
        answers += [client.post("/desk/sign-in", data={"token": "guess"}).status_code]
        assert answers == [401, 401, 401]
        # Also the right token waits, so that refusals tell nothing.
        assert client.post("/desk/sign-in", data={"token": config.admin_token}).status_code == 429
