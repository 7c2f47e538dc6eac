"""The feedback app under a real uvicorn on a real Postgres; the language model is a stand-in with known replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from orchestrator.people.raters import create_rater
from orchestrator.web.app import FeedbackConfig, create_app
from tests.orchestrator.web.browsing import Browser
from tests.orchestrator.web.stand_in import StandIn
from tests.running import add_artifact, deploy, running

ADMIN_TOKEN = "the admin's token"


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def database(database_url: str) -> Iterator[Callable[[], Session]]:
    """Opens sessions on the test's database."""
    engine = create_engine(database_url)
    yield lambda: Session(engine, expire_on_commit=False)
    engine.dispose()


@pytest.fixture
def policy_url(stand_in: StandIn) -> Iterator[str]:
    with running(stand_in.app()) as url:
        yield url


@pytest.fixture
def live(database: Callable[[], Session]) -> str:
    """The digest of the live snapshot."""
    with database() as session, session.begin():
        artifact = add_artifact(session, "live")
        deploy(session, artifact)
        return artifact.digest


@pytest.fixture
def config(database_url: str, policy_url: str) -> FeedbackConfig:
    return FeedbackConfig(database_url, policy_url, sampling_timeout_s=10, admin_token=ADMIN_TOKEN)


@pytest.fixture
def feedback_url(config: FeedbackConfig) -> Iterator[str]:
    with running(create_app(config)) as url:
        yield url


@pytest.fixture
def admin(feedback_url: str) -> Iterator[Browser]:
    """A browser that is signed in at the desk."""
    browser = Browser(feedback_url)
    page = browser.client.post("/desk/sign-in", data={"token": f" {ADMIN_TOKEN} "})
    assert "Raters" in page.text
    yield browser
    browser.client.close()


@pytest.fixture
def new_rater(database: Callable[[], Session], feedback_url: str) -> Iterator[Callable[[str], httpx.Client]]:
    """A rater's client by handle, its token in its headers."""
    clients = []

    def make(handle: str) -> httpx.Client:
        with database() as session, session.begin():
            _, token = create_rater(session, handle)
        client = httpx.Client(base_url=feedback_url, headers={"Authorization": f"Bearer {token}"}, timeout=20)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def rater(new_rater: Callable[[str], httpx.Client], live: str) -> httpx.Client:
    """A rater, while a policy is live."""
    return new_rater("ann")
