"""Take the pictures of docs/tour.md out of a demo: python docs/tour_screenshots.py [FOLDER]

The demo runs, has ended at least one cycle, and ORCHESTRATOR_HOME is set by the line that it prints. Nothing stands in
for anything: the Prefect UI, the pages and the policy are those of the demo. One rater joins and chooses once, and one
more conversation stays in the demo. Needs Chromium and playwright.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from taking import chromium, launch, shoot

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

from orchestrator.running_instance import InstanceFile, running  # noqa: E402
from orchestrator.settings import Settings  # noqa: E402

QUESTIONS = (
    "Please help me fix a bicycle.", "Please name a tree.", "Please tell me the colour of coal.",
    "Please tell me twice 8.",
)  # fmt: skip
"""Asked until the two replies differ: late policies of a demo often say the same."""
WINDOW = {"width": 1280, "height": 860}


def newest_cycle(api_url: str) -> dict[str, Any]:
    """The flow run of the newest cycle that ended with a decision."""
    body = {
        "flows": {"name": {"any_": ["cycle"]}},
        "flow_runs": {"state": {"name": {"any_": ["Promoted", "Refused"]}}},
        "sort": "START_TIME_DESC",
        "limit": 1,
    }
    runs: list[dict[str, Any]] = (
        httpx.post(f"{api_url}/flow_runs/filter", json=body, trust_env=False).raise_for_status().json()
    )
    if not runs:
        sys.exit("error: no cycle of this demo has ended yet; wait until the demo says that one is promoted or refused")
    return runs[0]


def prefect_pages(browser: Browser, api_url: str, folder: Path) -> None:
    """The runs, and one cycle with its stages."""
    ui_url = api_url.removesuffix("/api")
    run = newest_cycle(api_url)
    page = browser.new_context(viewport=WINDOW).new_page()
    page.goto(f"{ui_url}/runs")
    expect(page.get_by_text(run["name"]).first).to_be_visible()
    page.get_by_text("Hide subflows").evaluate("element => element.scrollIntoView({block: 'start'})")
    shoot(page, folder, "tour-runs", full_page=False)
    page.goto(f"{ui_url}/runs/flow-run/{run['id']}")
    expect(page.get_by_text("Subflow Runs")).to_be_visible()
    # The timeline is a canvas that is drawn for a moment after the page has come to rest.
    page.wait_for_function("document.querySelector('canvas') !== null")
    page.wait_for_timeout(2000)
    shoot(page, folder, "tour-cycle", full_page=False)


def chat(browser: Browser, feedback_url: str, folder: Path) -> None:
    """A rater joins by a link, writes, reads two replies of the demo's own policy, and chooses."""
    command = [sys.executable, "-m", "orchestrator.cli", "invite", "add", "tour", "--max-uses", "1", "--json"]
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    page = browser.new_context(base_url=feedback_url, viewport={"width": 1100, "height": 800}).new_page()
    page.goto(json.loads(made.stdout)["link"])
    page.get_by_role("button", name="Take part").click()
    page.goto("/tasks/helpful/helpful")
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Begin a conversation").click()
    for question in QUESTIONS:
        page.get_by_label(re.compile("Your (next )?message")).fill(question)
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("status")).to_have_text(re.compile("then choose|are the same"))
        if page.locator("#choose").is_visible():
            break
        page.get_by_role("button", name="They are the same").click()
    expect(page.locator("#choose")).to_be_enabled()
    page.get_by_role("radio", name="A, a little").check()
    shoot(page, folder, "tour-compare")
    page.get_by_role("button", name="Choose").click()
    expect(page.get_by_label("Your next message")).to_be_visible()


def desk(browser: Browser, instance: InstanceFile, folder: Path) -> None:
    """Raters in figures, where every policy stands, and the report of the newest cycle, whose first screen it is."""
    context = browser.new_context(base_url=instance.feedback_url, viewport={"width": 1200, "height": 800})
    page: Page = context.new_page()
    page.goto("/desk/sign-in")
    page.get_by_label("Admin token").fill(instance.admin_token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Raters")).to_be_visible()
    shoot(page, folder, "tour-desk", full_page=False)
    page.goto("/desk/elo")
    shoot(page, folder, "tour-elo", full_page=False)
    page.goto("/desk/cycles")
    page.get_by_role("link", name=re.compile("^Report")).first.click()
    expect(page.get_by_text("Lineage", exact=True)).to_be_visible()
    shoot(page, folder, "tour-report", full_page=False)
    section = page.locator("details", has=page.locator("summary", has_text=re.compile("^PPO$")))
    section.evaluate("element => { element.open = true; element.scrollIntoView({block: 'start'}); }")
    section.locator("img").first.evaluate("element => element.scrollIntoView({block: 'center'})")
    shoot(page, folder, "tour-report-pictures", full_page=False)


def main() -> int:
    """Take every picture of the tour."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    home = Settings.from_env().home
    instance, path = running(home), chromium()
    if instance is None:
        print(f"error: no demo runs on {home}; set ORCHESTRATOR_HOME by the line that it prints", file=sys.stderr)
        return 2
    if path is None:
        print("error: no Chromium; install it or set ORCHESTRATOR_BROWSER", file=sys.stderr)
        return 2
    with sync_playwright() as playwright:
        browser = launch(playwright, path)
        prefect_pages(browser, instance.prefect_api_url, folder)
        chat(browser, instance.feedback_url, folder)
        desk(browser, instance, folder)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
