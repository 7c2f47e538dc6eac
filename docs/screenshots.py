"""Take the pictures of every page, the rater's and the desk's: python docs/screenshots.py [FOLDER]

The pages are the real ones over a real Postgres; replies come from a stand-in. Needs Chromium and playwright.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from taking import chromium, launch, shoot

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from playwright.sync_api import BrowserContext, expect, sync_playwright  # noqa: E402
from sqlalchemy import create_engine  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402

from db.migrate import upgrade  # noqa: E402
from orchestrator.instance.postgres import EmbeddedPostgres  # noqa: E402
from orchestrator.people import access, notices  # noqa: E402
from orchestrator.people.raters import create_rater  # noqa: E402
from orchestrator.web.app import FeedbackConfig, create_app  # noqa: E402
from tests.orchestrator.web import stand_in  # noqa: E402
from tests.orchestrator.web.scene import DESK, set_scene, work_a_while  # noqa: E402
from tests.running import add_artifact, deploy, running  # noqa: E402

REPLIES = (
    "Here is a plan for the weekend:\n\n1. **Saturday morning:** walk along the river, about two hours.\n2. **Saturday "
    "evening:** cook the soup below.\n\n```\n2 onions, 500 g carrots, 1 l stock\n```\n\nShall I write a shopping list?",
    "You could walk, cook or read. Tell me how many people come and what they like, and I will plan both days.",
)


def walk(context: BrowserContext, link: str, folder: Path, size: str) -> None:
    """Lead a rater through every page."""
    page = context.new_page()
    page.goto(link)
    shoot(page, folder, f"join-{size}")
    page.get_by_role("button", name="Take part").click()
    expect(page.get_by_role("heading", name="Your tasks")).to_be_visible()
    shoot(page, folder, f"tasks-{size}")
    page.goto("/tasks/red_team/more_harmful")
    shoot(page, folder, f"instructions-{size}")
    page.goto("/tasks/helpful/helpful")
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Begin a conversation").click()
    page.get_by_label("Your message").fill("What could I do at the weekend with friends?")
    shoot(page, folder, f"write-{size}")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#choose")).to_be_enabled()
    page.get_by_role("radio", name="B, a little").check()
    shoot(page, folder, f"compare-{size}")
    page.get_by_text("Write a better reply instead").click()
    page.get_by_role("radio", name="Reply B").check()
    shoot(page, folder, f"edit-{size}")
    page.get_by_role("button", name="I can’t tell").click()
    expect(page.get_by_label("Your next message")).to_be_visible()
    page.get_by_role("button", name="End the conversation").click()
    expect(page.get_by_text("has ended")).to_be_visible()
    shoot(page, folder, f"ended-{size}")


ADMIN_TOKEN = "a token for the pictures"


def look_after(context: BrowserContext, folder: Path, size: str) -> None:
    """Every page of the desk."""
    page = context.new_page()
    page.goto("/desk/sign-in")
    shoot(page, folder, f"desk-sign-in-{size}")
    page.get_by_label("Your token").fill(ADMIN_TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Raters")).to_be_visible()
    for name, path in DESK.items():
        page.goto(path)
        shoot(page, folder, f"desk-{name}-{size}")


def write_and_report(context: BrowserContext, cookie: str, url: str, folder: Path, size: str) -> None:
    """The pages of somebody who writes replies, and the one on which problems are reported."""
    context.add_cookies([{"name": "orchestrator_session", "value": cookie, "url": url}])
    page = context.new_page()
    page.goto("/write")
    shoot(page, folder, f"reply-{size}")
    page.goto("/problem")
    shoot(page, folder, f"problem-{size}")


def main() -> int:
    """Take every picture, wide and on a phone."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    path = chromium()
    if path is None:
        print("error: no Chromium; install it or set ORCHESTRATOR_BROWSER", file=sys.stderr)
        return 2
    stand_in.reply_of = lambda digest, seed, content: REPLIES[seed % 2]
    with tempfile.TemporaryDirectory() as home, EmbeddedPostgres(Path(home) / "postgres") as postgres:
        upgrade(postgres.url)
        engine = create_engine(postgres.url)
        with Session(engine) as session, session.begin():
            deploy(session, add_artifact(session, "live"))
            link = f"/join/{access.create_invitation(session, 'pictures')[1]}"
            tokens = [create_rater(session, handle)[1] for handle in ("ann", "berta", "carl")]
        with (
            running(stand_in.StandIn().app()) as policy_url,
            running(create_app(FeedbackConfig(postgres.url, policy_url, admin_token=ADMIN_TOKEN))) as url,
            sync_playwright() as playwright,
        ):
            browser = launch(playwright, path)

            def context(size: str) -> BrowserContext:
                if size == "wide":
                    return browser.new_context(base_url=url, viewport={"width": 1200, "height": 800})
                phone = {"width": 375, "height": 740}
                return browser.new_context(base_url=url, viewport=phone, color_scheme="dark")

            for size in ("wide", "phone"):
                walk(context(size), link, folder, size)
            with Session(engine) as session, session.begin():
                writer = set_scene(session)
            work_a_while(url, tokens)
            with Session(engine) as session, session.begin():
                notices.report_problem(session, 1, "The left reply was cut off in mid-sentence.", "k", 1)
            for size in ("wide", "phone"):
                look_after(context(size), folder, size)
                write_and_report(context(size), writer, url, folder, size)
            browser.close()
        engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
