"""The desk, the writer's page and the problem form in a real browser: no serious barrier, no sideways scrolling."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.conversations import contestants, pairings
from orchestrator.people import access, notices
from orchestrator.people.queues import add_group, join_group
from orchestrator.people.raters import create_rater
from orchestrator.web.app import FeedbackConfig
from tests.orchestrator.web.in_chromium import (
    PHONE,
    begin,
    choose,
    chromium,
    join,
    link,
    new_context,
    serious_barriers,
    write,
)
from tests.orchestrator.web.scene import DESK, set_scene, work_a_while

Database = Callable[[], Session]
__all__ = ["chromium", "link", "new_context"]  # fixtures


@pytest.fixture
def every_page(
    database: Database, feedback_url: str, live: str, config: FeedbackConfig
) -> Callable[..., Iterator[str]]:
    """Leads a page through the desk, a writer's page and the problem form, after raters have worked a while."""
    with database() as session, session.begin():
        tokens = [create_rater(session, handle)[1] for handle in ("ann", "berta", "carl")]
        writer = set_scene(session)
    work_a_while(feedback_url, tokens)
    with database() as session, session.begin():
        notices.report_problem(session, 1, "The left reply was cut off.", "k", 1)

    def walk(page: Page) -> Iterator[str]:
        page.goto("/desk/sign-in")
        yield "sign in at the desk"
        page.get_by_label("Your token").fill(config.admin_token or "")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Raters")).to_be_visible()
        for name, path in DESK.items():
            page.goto(path)
            page.eval_on_selector_all("details", "all => all.forEach((one) => { one.open = true; })")
            yield name
        cookie = {"name": "orchestrator_session", "value": writer, "url": feedback_url}
        page.context.add_cookies([cookie])  # type: ignore[list-item]
        for path in ("/", "/write", "/problem"):
            page.goto(path)
            yield path

    return walk


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_barrier(
    new_context: Callable[..., BrowserContext], every_page: Callable[..., Iterator[str]], scheme: str
) -> None:
    page = new_context(color_scheme=scheme).new_page()
    found = {name: barriers for name in every_page(page) if (barriers := serious_barriers(page))}
    assert found == {}


def test_a_phone_shows_everything_without_sideways_scrolling(
    new_context: Callable[..., BrowserContext], every_page: Callable[..., Iterator[str]]
) -> None:
    page = new_context(viewport=PHONE, has_touch=True, is_mobile=True).new_page()
    too_wide = [
        name for name in every_page(page) if page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]
    ]
    assert too_wide == []


def test_a_rater_waits_for_a_persons_reply_and_both_go_on(
    new_context: Callable[..., BrowserContext], link: str, database: Database, feedback_url: str
) -> None:
    with database() as session, session.begin():
        wil, _ = create_rater(session, "wil")
        add_group(session, "writers")
        join_group(session, "writers", "wil")
        people = contestants.add_writer(session, "people", "writers")
        live = contestants.policy(session, session.query(t.Deployment.snapshot_id).scalar())
        pairings.open_pairing(session, "helpful", people.id, live.id)
        cookie = access.begin_session(session, wil.id)
    rater = join(new_context(), link)
    begin(rater)
    write(rater, "Which way to the station?")
    expect(rater.locator("#problem")).to_contain_text("One of the replies takes a while")
    # Neither reply is there, also not the one that is complete.
    expect(rater.locator("#reply-a .text")).to_have_text("")
    expect(rater.locator("#reply-b .text")).to_have_text("")
    expect(rater.locator("#choose")).to_be_disabled()
    context = new_context()
    context.add_cookies([{"name": "orchestrator_session", "value": cookie, "url": feedback_url}])
    writer = context.new_page()
    writer.goto("/")
    writer.get_by_role("link", name="Write a reply").click()
    expect(writer.get_by_text("Which way to the station?")).to_be_visible()
    writer.wait_for_load_state()
    writer.get_by_label("Your reply").fill("Straight on, then **left**.")
    writer.reload()
    # What was typed survives a reload, as everywhere.
    expect(writer.get_by_label("Your reply")).to_have_value("Straight on, then **left**.")
    writer.get_by_role("button", name="Use this reply").click()
    expect(writer.get_by_text("No conversation waits")).to_be_visible()
    rater.reload()
    expect(rater.locator("#choose")).to_be_enabled()
    expect(rater.locator("strong")).to_have_text("left")
    rater.wait_for_load_state()
    choose(rater, "A, clearly")
