"""A real browser for the tests of the pages: its fixtures, and what a rater does in it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy.orm import Session

from orchestrator.people import access

Database = Callable[[], Session]
PHONE = {"width": 360, "height": 740}
PATIENCE_MS = 30_000
"""What is waited for comes within a second; a machine with other work may take long, which is no fault of a page."""
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = os.environ.get("ORCHESTRATOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        reason = "no Chromium (apt-get install chromium, or ORCHESTRATOR_BROWSER)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        # Root has no sandbox; the pages here are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def link(database: Database, live: str) -> str:
    """The path of an invitation, while a policy is live."""
    with database() as session, session.begin():
        return f"/join/{access.create_invitation(session, 'test')[1]}"


@pytest.fixture
def new_context(chromium: Browser, feedback_url: str) -> Iterator[Callable[..., BrowserContext]]:
    """Makes browser profiles; each page that complains in its console fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def make(**options: Any) -> BrowserContext:
        context = chromium.new_context(base_url=feedback_url, **options)
        context.set_default_timeout(PATIENCE_MS)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def join(context: BrowserContext, link: str) -> Page:
    page = context.new_page()
    page.goto(link)
    page.get_by_role("button", name="Take part").click()
    expect(page.get_by_role("heading", name="Your tasks")).to_be_visible()
    return page


def begin(page: Page, task: str = "helpful", question: str = "helpful") -> None:
    page.goto(f"/tasks/{task}/{question}")
    agree = page.get_by_role("checkbox")
    if agree.count():
        agree.check()
    page.get_by_role("button", name="Begin a conversation").click()
    expect(page.get_by_label("Your message")).to_be_visible()
    page.wait_for_load_state()  # style sheet and script are there


def write(page: Page, text: str) -> None:
    page.get_by_label(re.compile("message")).fill(text)
    page.get_by_role("button", name="Send").click()


def choose(page: Page, name: str) -> None:
    page.get_by_role("radio", name=name, exact=True).check()
    page.get_by_role("button", name="Choose").click()
    expect(page.get_by_label("Your next message")).to_be_visible()


def serious_barriers(page: Page) -> list[str]:
    """What axe finds on the page that keeps somebody out."""
    return [
        f"{violation['id']}: {[node['target'] for node in violation['nodes']]}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
