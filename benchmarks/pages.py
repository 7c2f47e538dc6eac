"""What a rater waits for, in a real browser: the first paint, and the acknowledgement of a choice.

    python benchmarks/pages.py [--rounds 20] [--first-paint-ms 1000] [--acknowledged-ms 100]

The feedback app runs over a real Postgres; the language model is a stand-in that answers at once. Every round opens the
rater's tasks in a fresh browser profile (nothing cached), writes a message and chooses. Exits with 1 where the 95th
percentile misses a limit. Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from playwright.sync_api import Browser, expect, sync_playwright  # noqa: E402
from sqlalchemy import create_engine  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402

from db.migrate import upgrade  # noqa: E402
from orchestrator.instance.postgres import EmbeddedPostgres  # noqa: E402
from orchestrator.people import access  # noqa: E402
from orchestrator.web.app import FeedbackConfig, create_app  # noqa: E402
from tests.orchestrator.web.stand_in import StandIn  # noqa: E402
from tests.running import add_artifact, deploy, running  # noqa: E402

# The browser writes the entry a moment after the paint itself.
FIRST_PAINT = """() => new Promise((resolve) => {
  new PerformanceObserver((list) => {
    for (const entry of list.getEntriesByName("first-contentful-paint")) resolve(entry.startTime);
  }).observe({ type: "paint", buffered: true });
})"""
# From the click to the moment at which the server's word about it is there.
ACKNOWLEDGED = """() => new Promise((resolve) => {
  const ask = window.fetch;
  let since = 0;
  window.fetch = async (...given) => {
    const answer = await ask(...given);
    if (answer.ok && String(given[0]).includes("/comparison")) resolve(performance.now() - since);
    return answer;
  };
  document.getElementById("choice-a4").checked = true;
  since = performance.now();
  document.getElementById("choose").click();
})"""


def one_round(browser: Browser, url: str, link: str) -> tuple[list[float], float]:
    """First paints of the rater's pages, and the time from the click to the acknowledgement; in milliseconds."""
    context = browser.new_context(base_url=url)
    page = context.new_page()
    page.goto(link)
    paints = [page.evaluate(FIRST_PAINT)]
    page.get_by_role("button", name="Take part").click()
    page.wait_for_url("**/")
    paints.append(page.evaluate(FIRST_PAINT))
    page.goto("/tasks/helpful/helpful")
    paints.append(page.evaluate(FIRST_PAINT))
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Begin a conversation").click()
    page.get_by_label("Your message").fill("hello")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#choose")).to_be_enabled()
    paints.append(page.evaluate(FIRST_PAINT))
    acknowledged = page.evaluate(ACKNOWLEDGED)
    context.close()
    return paints, acknowledged


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    """Measure and print; returns 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--first-paint-ms", type=float, default=1000)
    parser.add_argument("--acknowledged-ms", type=float, default=100)
    args = parser.parse_args()
    path = os.environ.get("ORCHESTRATOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        print("error: no Chromium; install it or set ORCHESTRATOR_BROWSER", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "postgres") as postgres:
        upgrade(postgres.url)
        engine = create_engine(postgres.url)
        with Session(engine) as session, session.begin():
            deploy(session, add_artifact(session, "live"))
            link = f"/join/{access.create_invitation(session, 'benchmark')[1]}"
        paints: list[float] = []
        acknowledged: list[float] = []
        with (
            running(StandIn().app()) as policy_url,
            running(create_app(FeedbackConfig(postgres.url, policy_url))) as url,
            sync_playwright() as playwright,
        ):
            sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=path, args=sandbox)
            for _ in range(args.rounds):
                painted, choice = one_round(browser, url, link)
                paints += painted
                acknowledged.append(choice)
            browser.close()
        engine.dispose()
    missed = False
    for name, values, limit in (
        ("first paint", paints, args.first_paint_ms),
        ("choice acknowledged", acknowledged, args.acknowledged_ms),
    ):
        high = percentile(values, 0.95)
        missed |= high >= limit
        print(f"{name:20} median {percentile(values, 0.5):6.1f} ms   p95 {high:6.1f} ms   limit {limit:.0f} ms")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
