"""The pages in a real browser: every kind of task, keys alone, a phone, bad networks, hostile text, accessibility."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Route, expect
from sqlalchemy import func, select

from db import tables as t
from orchestrator.conversations.contestants import policy
from orchestrator.conversations.pairings import open_pairing
from orchestrator.instance.ports import free_port
from orchestrator.people.instruction_versions import shipped
from orchestrator.people.tasks import TASKS
from orchestrator.web.app import FeedbackConfig, create_app
from tests.orchestrator.web.in_chromium import (
    PHONE,
    Database,
    begin,
    choose,
    chromium,
    join,
    link,
    new_context,
    serious_barriers,
    write,
)
from tests.orchestrator.web.stand_in import StandIn
from tests.running import add_artifact, running

__all__ = ["chromium", "link", "new_context"]  # fixtures


@pytest.fixture
def page(new_context: Callable[..., BrowserContext], link: str) -> Page:
    """The page of a rater who has just joined."""
    return join(new_context(), link)


def compared(database: Database) -> list[tuple[str, int | None]]:
    """Side and strength of every comparison, in order."""
    with database() as session:
        rows = session.execute(select(t.Comparison.side, t.Comparison.strength).order_by(t.Comparison.id))
        return [(row.side, row.strength) for row in rows]


@pytest.mark.parametrize(
    ("task", "question"),
    [
        ("helpful", "helpful"),
        ("red_team", "more_harmful"),
        ("red_team_choose_best", "harmless"),
        ("model_comparison", "helpful"),
        ("model_comparison", "harmless"),
    ],
)
def test_a_conversation_of_every_kind(page: Page, database: Database, task: str, question: str) -> None:
    began = time.monotonic()
    begin(page, task, question)
    assert page.get_by_text("You may meet upsetting text here").count() == (question != "helpful")
    page.get_by_text("Instructions", exact=True).click()
    expect(page.get_by_text(shipped(question).text)).to_be_visible()
    write(page, "first")
    expect(page.get_by_text(re.compile(r"says tsrif"))).to_have_count(2)
    choose(page, "B, rather clearly")
    expect(page.get_by_role("listitem").filter(has_text="says tsrif")).to_have_count(1)
    write(page, "second")
    page.get_by_role("button", name="I can’t tell").click()
    expect(page.get_by_label("Your next message")).to_be_visible()
    page.get_by_role("button", name="End the conversation").click()
    expect(page.get_by_text("has ended; 2 choices made")).to_be_visible()
    page.get_by_role("link", name="Your tasks").click()
    expect(page.get_by_text("Choices in the last 24 hours")).to_be_visible()
    assert compared(database) == [("b", 3), ("none", None)]
    with database() as session:
        dialogue = session.scalars(select(t.Dialogue)).one()
        assert (dialogue.task, dialogue.question) == (task, question)
        durations = session.scalars(select(t.Comparison.duration_ms)).all()
        elapsed_ms = 1000 * (time.monotonic() - began)
        assert all(duration is not None and 0 <= duration <= elapsed_ms for duration in durations)


def test_the_keyboard_alone_suffices(new_context: Callable[..., BrowserContext], link: str, database: Database) -> None:
    page = new_context().new_page()
    page.goto(link)

    def press_until(selector: str) -> None:
        """Tab to an element as somebody without a mouse does."""
        for _ in range(40):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {selector}")

    press_until("button.primary")
    page.keyboard.press("Enter")
    page.wait_for_url("**/")
    press_until("a[href='/tasks/helpful/helpful']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks/helpful/helpful")
    press_until("input[name=agree]")
    page.keyboard.press("Space")
    press_until("button.primary")
    page.keyboard.press("Enter")
    page.wait_for_url("**/dialogues/*")
    for number, text in enumerate(("one", "two", "three")):
        page.wait_for_load_state()  # the script that knows the keys has run
        press_until("#content")
        page.keyboard.type(f"{text} 1 2 3 0")  # digits in a message are text, not choices
        page.keyboard.press("Control+Enter")
        expect(page.locator("#choose")).to_be_enabled()
        page.wait_for_load_state()
        if number < 2:
            page.keyboard.press(("1", "7")[number])
            page.keyboard.press("Enter")
        else:
            page.keyboard.press("0")
        expect(page.get_by_label("Your next message")).to_be_visible()
    assert compared(database) == [("a", 4), ("b", 3), ("none", None)]


def test_an_edited_reply_is_taken_in_place_of_a_choice(page: Page, database: Database) -> None:
    begin(page)
    write(page, "hello")
    page.get_by_text("Write a better reply instead").click()
    page.get_by_role("radio", name="Reply B").check()
    box = page.get_by_label("The better reply")
    expect(box).to_have_value(re.compile("says olleh"))
    box.fill("Hello to you.")
    page.get_by_role("button", name="Use this reply").click()
    expect(page.get_by_role("listitem").filter(has_text="Hello to you.")).to_be_visible()
    with database() as session:
        assert session.scalar(select(func.count()).select_from(t.Pair).where(t.Pair.edit_of_id.is_not(None))) == 1


def test_replies_appear_while_they_are_written_and_a_reload_loses_nothing(
    page: Page, stand_in: StandIn, database: Database
) -> None:
    begin(page)
    stand_in.hold()
    write(page, "hello")
    first_words = page.locator("#reply-a .text")
    expect(first_words).to_have_text("2476")
    expect(page.locator("#choose")).to_be_disabled()
    page.reload()
    expect(first_words).to_have_text("2476")
    stand_in.release()
    expect(first_words).to_contain_text("says olleh")
    choose(page, "A, clearly")
    assert compared(database) == [("a", 4)]
    with database() as session:
        assert session.scalar(select(func.count()).select_from(t.Pair)) == 1


def test_a_double_click_two_tabs_and_the_back_button_count_once(page: Page, database: Database) -> None:
    begin(page)
    page.get_by_label("Your message").fill("hello")
    page.get_by_role("button", name="Send").dblclick()
    expect(page.locator("#choose")).to_be_enabled()
    other = page.context.new_page()
    other.goto(page.url)
    page.get_by_role("radio", name="A, clearly").check()
    page.get_by_role("button", name="Choose").dblclick()
    expect(page.get_by_label("Your next message")).to_be_visible()
    other.get_by_role("radio", name="B, clearly").check()
    other.get_by_role("button", name="Choose").click()
    expect(other.get_by_role("alert")).to_contain_text("the first one stands")
    page.go_back()
    page.goto("/")
    page.go_back()
    assert compared(database) == [("a", 4)]
    with database() as session:
        assert session.scalar(select(func.count()).select_from(t.Message)) == 2


def test_the_server_restarts_between_reading_and_choosing(
    chromium: Browser, config: FeedbackConfig, link: str, database: Database
) -> None:
    context = chromium.new_context()
    context.set_default_timeout(20_000)
    # Kept for the second server: what the system gives to a first one it may give to somebody else in between.
    port = free_port()
    with running(create_app(config), port) as url:
        page = context.new_page()
        page.goto(url + link)
        page.get_by_role("button", name="Take part").click()
        page.goto(f"{url}/tasks/helpful/helpful")
        page.get_by_role("checkbox").check()
        page.get_by_role("button", name="Begin a conversation").click()
        write(page, "hello")
        expect(page.locator("#choose")).to_be_enabled()
        page.wait_for_load_state()
    page.get_by_role("radio", name="B, clearly").check()
    page.get_by_role("button", name="Choose").click()
    expect(page.get_by_role("alert")).to_contain_text("Trying again; nothing is lost")
    assert compared(database) == []
    with running(create_app(config), port):
        expect(page.get_by_label("Your next message")).to_be_visible(timeout=20_000)
        assert compared(database) == [("b", 4)]
        context.close()


def test_what_was_typed_survives_a_reload_and_an_answer_that_got_lost(page: Page, database: Database) -> None:
    begin(page)
    page.get_by_label("Your message").fill("a long thought")
    page.reload()
    expect(page.get_by_label("Your message")).to_have_value("a long thought")

    lost = []

    def lose_the_answer(route: Route) -> None:
        """The server gets the message; its answer never arrives."""
        if not lost:
            lost.append(route.fetch(max_redirects=0).status)
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/messages", lose_the_answer)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#choose")).to_be_enabled()
    with database() as session:
        assert session.scalar(select(func.count()).select_from(t.Message)) == 1
    choose(page, "A, a little")
    expect(page.get_by_label("Your next message")).to_have_value("")


def test_it_works_without_javascript(new_context: Callable[..., BrowserContext], link: str, database: Database) -> None:
    page = join(new_context(java_script_enabled=False), link)
    begin(page)
    write(page, "hello")
    expect(page.locator("#choose")).to_be_enabled(timeout=15_000)  # the page reloads itself meanwhile
    choose(page, "B, barely")
    assert compared(database) == [("b", 1)]


HOSTILE = (
    "<script>window.hacked=1</script><img src=https://evil.example/x.png onerror=window.hacked=1>"
    "<svg onload=window.hacked=1> [x](javascript:window.hacked=1) ![p](https://evil.example/p.png)"
    "<form action=https://evil.example><input name=choice value=a4></form><style>.choice{display:none}</style>"
)


def test_hostile_text_does_nothing(page: Page, database: Database) -> None:
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: _fail(dialog))
    begin(page)
    for text in (HOSTILE, HOSTILE[::-1]):  # the stand-in answers with its prompt reversed
        write(page, text)
        expect(page.locator("#choose")).to_be_enabled()
        choose(page, "A, clearly")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main svg, main iframe, main style, .turn form, .reply form").count() == 0
    assert not [url for url in asked if "evil.example" in url]
    assert compared(database) == [("a", 4), ("a", 4)]


def _fail(dialog: Dialog) -> None:
    raise AssertionError(f"a dialog opened: {dialog.message}")


def every_page(page: Page) -> Iterator[str]:
    """Lead the browser through every page a rater sees; gives their names as they stand."""
    yield "your tasks"
    page.goto("/tasks/red_team/more_harmful")
    yield "instructions"
    begin(page, "red_team", "more_harmful")
    yield "an empty conversation"
    write(page, "hello " * 40)
    expect(page.locator("#choose")).to_be_enabled()
    page.wait_for_load_state()
    yield "two replies"
    choose(page, "A, clearly")
    yield "the next message"
    page.get_by_role("button", name="End the conversation").click()
    expect(page.get_by_text("has ended")).to_be_visible()
    yield "an ended conversation"
    page.goto("/dialogues/999999")
    yield "an error"
    page.get_by_role("link", name="Feedback").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    yield "sign in"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_barrier(new_context: Callable[..., BrowserContext], link: str, scheme: str) -> None:
    page = join(new_context(color_scheme=scheme), link)
    found = {name: barriers for name in every_page(page) if (barriers := serious_barriers(page))}
    assert found == {}


def test_a_phone_shows_everything_without_sideways_scrolling(
    new_context: Callable[..., BrowserContext], link: str
) -> None:
    page = join(new_context(viewport=PHONE, has_touch=True, is_mobile=True), link)
    for name in every_page(page):
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
        if name == "two replies":
            boxes = [label.bounding_box() for label in page.locator(".step label").all()]
            # Fingers need about 44 px; eight steps across 336 px leave 38 in width, so the height makes up for it.
            assert all(box is not None and box["width"] >= 34 and box["height"] >= 44 for box in boxes)
            a, b = (page.locator(f"#reply-{side}").bounding_box() for side in "ab")
            assert a is not None
            assert b is not None
            assert a["y"] + a["height"] <= b["y"]  # one above the other


def test_every_task_is_offered_by_name(page: Page, database: Database) -> None:
    with database() as session, session.begin():
        one = policy(session, add_artifact(session, "one").id)
        open_pairing(session, "model_comparison", one.id, one.id)
    page.reload()
    for task in TASKS.values():
        assert page.get_by_role("heading", name=re.compile(re.escape(task.title))).count() >= 1


def test_two_replies_that_are_the_same_take_one_click(page: Page, database: Database, stand_in: StandIn) -> None:
    stand_in.alike = True
    begin(page, "helpful", "helpful")
    for text, answer in (("first", lambda: page.get_by_role("button", name="They are the same").click()),
                         ("second", lambda: page.keyboard.press("0"))):  # fmt: skip
        write(page, text)
        expect(page.get_by_text("Both replies are the same.")).to_be_visible()
        expect(page.locator(".scale")).to_be_hidden()
        expect(page.locator("#choose")).to_be_hidden()
        page.wait_for_load_state()  # the script that knows the keys has run
        answer()
        expect(page.get_by_label("Your next message")).to_be_visible()
    with database() as session:
        reasons = session.scalars(select(t.Comparison.reason)).all()
    assert reasons == ["tie", "tie"]


def test_a_tab_that_was_left_behind_shows_the_page_as_it_is_now(page: Page, database: Database) -> None:
    begin(page, "helpful", "helpful")
    write(page, "first")
    expect(page.locator("#choose")).to_be_enabled()
    other = page.context.new_page()
    other.goto(page.url)
    choose(other, "A, clearly")
    expect(other.get_by_label("Your next message")).to_be_visible()
    page.get_by_role("radio", name="B, clearly", exact=True).check()
    page.get_by_role("button", name="Choose").click()
    expect(page.get_by_role("alert")).to_contain_text("the first one stands")
    expect(page.get_by_label("Your next message")).to_be_visible()
    assert compared(database) == [("a", 4)]
