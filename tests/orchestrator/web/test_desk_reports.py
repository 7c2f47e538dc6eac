"""Cycles at the desk: the list, and each report as it lies in the store, with the times that are in no artifact."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cycles.presence import at_work
from orchestrator.reports import page
from orchestrator.reports.page import to_html
from orchestrator.store.approvals import hold_for_decision
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.web.app import FeedbackConfig
from orchestrator.web.pages.desk import reports
from orchestrator.web.pages.tables import label_cells
from tests.orchestrator.feedback_app import ADMIN_TOKEN
from tests.orchestrator.reports.whole_cycle import whole_cycle
from tests.orchestrator.web.browsing import Browser
from tests.orchestrator.web.in_chromium import PATIENCE_MS, chromium
from tests.running import add_artifact

Database = Callable[[], Session]
__all__ = ["chromium"]  # fixture
BEGAN = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")


@pytest.fixture
def config(config: FeedbackConfig, store: ArtifactStore, tmp_path: Path) -> FeedbackConfig:
    return replace(config, artifact_url=store.url, cache=tmp_path / "cache")


def add_report(session: Session, number: int, digest: str) -> None:
    """A promoted cycle with a report, which took two seconds to write, and a job of half an hour."""
    cycle = t.Cycle(number=number, name="<b>bold</b>", config={}, state="promoted", ended_at=BEGAN)
    session.add(cycle)
    session.flush()
    report = add_artifact(session, f"report {number}", kind="report", digest=digest)
    for name, artifact_id, seconds in (("train_policy", None, 1800.0), ("write_report", report.id, 0.0)):
        session.add(
            t.Stage(
                cycle_id=cycle.id,
                name=name,
                state="done",
                artifact_id=artifact_id,
                started_at=BEGAN,
                ended_at=BEGAN + timedelta(seconds=2),
                job_seconds=seconds,
            )
        )


@pytest.fixture
def reported(database: Database, store: ArtifactStore, tmp_path: Path) -> None:
    """Cycle 3 has a page, cycle 2 a report of before there were any, cycle 1 one that is gone; cycle 4 has none."""
    folders = {number: tmp_path / f"report {number}" for number in (2, 3)}
    for folder in folders.values():
        folder.mkdir()
        (folder / "report.md").write_text("# Cycle")
    (folders[3] / "report.html").write_text(to_html(whole_cycle(), [], []), encoding="utf-8")
    digests = {number: store.publish(folder).digest for number, folder in folders.items()}
    with database() as session, session.begin():
        add_report(session, 1, "sha256:" + "0" * 64)
        for number, digest in digests.items():
            add_report(session, number, digest)
        session.add(t.Cycle(number=4, name="open", config={}, state="open"))


def test_cycles_are_listed_with_the_way_to_their_reports(reported: None, admin: Browser) -> None:
    html = admin.client.get("/desk/cycles").text
    assert re.findall(r'data-label="Cycle">(\d+)<', html) == ["4", "3", "2", "1"]
    assert re.findall(r'href="(/desk/cycles/[^"]+)"', html) == [f"/desk/cycles/{number}/report" for number in (3, 2, 1)]
    assert "&lt;b&gt;bold&lt;/b&gt;" in html


def test_a_promoted_cycle_says_why_and_by_whom(reported: None, admin: Browser, database: Database) -> None:
    with database() as session, session.begin():
        cycle_id = session.scalars(select(t.Cycle.id).where(t.Cycle.number == 3)).one()
        decision = {"decision": "promote", "reasons": [], "evidence": {}, "kind": "cycle"}
        person = {"decided_by": "Ada", "identity": "proven", "via": "desk", "note": "it is shorter"}
        snapshot = add_artifact(session, "week 3")
        session.add(t.Decision(cycle_id=cycle_id, snapshot_id=snapshot.id, **decision, **person))
    why = re.findall(r'data-label="Why">(.*?)<', admin.client.get("/desk/cycles").text)
    assert why[1].startswith("approved: it is shorter; ")
    assert why[1].endswith(" (Ada (proven by a token))")
    assert why[2:] == ["–", "–"]


def test_the_open_cycle_says_how_long_it_still_takes_or_that_it_waits(
    reported: None, admin: Browser, database: Database, config: FeedbackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> str:
        return re.findall(r'data-label="State">(.*?)<', admin.client.get("/desk/cycles").text)[0]

    monkeypatch.setenv("DATABASE_URL", config.database_url)
    with database() as session:
        cycle_id = session.scalars(select(t.Cycle.id).where(t.Cycle.number == 4)).one()
    assert state() == "open"
    with at_work(cycle_id, "cycle run"):
        # The promoted cycles took 2 s for either stage, and this one has begun neither.
        assert re.fullmatch(r"open: about 2 s left at \d\d:\d\d UTC, going by cycle 3", state())
        with database() as session, session.begin():
            snapshot = add_artifact(session, "week 4")
            hold_for_decision(session, cycle_id, snapshot.id, "it is to be", [], {}, timedelta(hours=48))
        assert state() == "open: waits for a decision"


def test_a_report_is_the_stored_page_with_what_it_cost(reported: None, admin: Browser) -> None:
    answer = admin.client.get("/desk/cycles/3/report")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "The new policy went live" in answer.text
    text = re.sub(r"\s+", " ", answer.text)
    assert "Job hours</th><td>0.50 (" in text
    assert "<td>train_policy</td><td>done</td><td>2.0</td><td>1800.0</td>" in text
    assert '<a href="/desk/cycles">' in text
    assert page.COST not in text


def test_what_has_no_page_says_where_else_to_look(reported: None, admin: Browser) -> None:
    for number, said in (
        (1, "ORCHESTRATOR_ARTIFACT_URL"),
        (2, "orchestrator cycle show 2"),
        (4, "Cycle 4 has no report yet"),
        (9, "There is no cycle 9"),
    ):
        answer = admin.client.get(f"/desk/cycles/{number}/report", headers={"accept": "text/html"})
        assert answer.status_code == 404
        assert said in answer.text


def test_desk_and_page_agree_on_where_there_is_room() -> None:
    """Both stand on one floor, and neither may import the other."""
    assert (reports.ABOVE, reports.COST) == (page.ABOVE, page.COST)
    html = to_html(whole_cycle(), [], [])
    assert html.count(reports.ABOVE) == html.count(reports.COST) == 1


@pytest.mark.parametrize(("width", "columns"), [(1440, 2), (390, 1)])
def test_a_report_is_read_without_sideways_scrolling(
    reported: None, chromium: object, feedback_url: str, width: int, columns: int
) -> None:
    context = chromium.new_context(base_url=feedback_url, viewport={"width": width, "height": 844})  # type: ignore[attr-defined]
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto("/desk/sign-in")
    opened.get_by_label("Admin token").fill(ADMIN_TOKEN)
    opened.get_by_role("button", name="Sign in").click()
    opened.wait_for_url("**/desk")
    asked.clear()
    opened.goto("/desk/cycles/3/report")
    opened.eval_on_selector_all("details", "all => all.forEach((one) => { one.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing is cut either: no element is wider than what it holds lets it be.
    cut = opened.evaluate(
        "[...document.querySelectorAll('main *')].filter((one) => one.scrollWidth > one.clientWidth + 1"
        " && getComputedStyle(one).display !== 'inline').map((one) => one.outerHTML.slice(0, 80))"
    )
    assert cut == []
    assert [url for url in asked if not url.startswith(("data:", feedback_url))] == []
    context.close()


def test_each_cell_of_a_table_gets_the_heading_of_its_column() -> None:
    html = '<table class="data wraps"><thead><tr><th>Who <small>x</small></th><th>"Left"</th></tr></thead><tbody>'
    html += '<tr><td>ann</td><td class="c">3</td></tr></tbody></table><table><tr><td>other</td></tr></table>'
    assert label_cells(html).partition("<tbody>")[2] == (
        '<tr><td data-label="Who x">ann</td><td data-label="&quot;Left&quot;" class="c">3</td></tr></tbody></table>'
        "<table><tr><td>other</td></tr></table>"
    )
    assert label_cells("<p>none</p>") == "<p>none</p>"
