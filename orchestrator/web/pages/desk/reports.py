"""The desk's pages of cycles: how each ended, and its report as it lies in the store, with what it cost in time."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cycles.cost import CycleCost, cost_of
from orchestrator.cycles.telling import loop_now
from orchestrator.errors import ApiError
from orchestrator.store import ledger
from orchestrator.store.live import why_promoted
from orchestrator.web.pages.desk.shared import Desk
from orchestrator.web.pages.shell import SECURITY_HEADERS, Number, rendered

PAGE = "report.html"
ABOVE, COST = "<!-- above -->", "<!-- cost -->"
"""Where the page leaves room for the way to other pages, and for times, which are in no artifact."""
# The report brings its pictures and its style sheet with it, and nothing in it runs.
HEADERS = SECURITY_HEADERS | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
}


def add_reports(router: APIRouter, desk: Desk) -> None:
    @router.get("/cycles")
    def cycles(request: Request) -> HTMLResponse:
        """Every cycle, the newest first, with the way to its report."""
        return desk.show(request, "cycles.html", lambda session: {"cycles": _cycles(session)})

    @router.get("/cycles/{number}/report")
    def report(request: Request, number: Number) -> HTMLResponse:
        """The newest report of a cycle."""

        def work(session: Session) -> tuple[str, CycleCost]:
            desk.actor(session, request)
            return _report(session, number)

        place, cost = desk.feedback.transaction(work)
        return HTMLResponse(_filled(_read(desk, number, place), cost), headers=HEADERS)


class ListedCycle(NamedTuple):
    """A row of the page of cycles."""

    number: int
    name: str
    state: str
    started_at: datetime
    ended_at: datetime | None
    note: str | None
    reported: bool
    """Whether there is a report of it."""
    now: str | None = None
    """Of the open one: that it waits for a person, or how long it still takes while it is worked on."""


def _cycles(session: Session) -> list[ListedCycle]:
    reported = (
        select(t.Stage.id)
        .join(t.Artifact, t.Artifact.id == t.Stage.artifact_id)
        .where(t.Stage.cycle_id == t.Cycle.id, t.Artifact.kind == "report")
        .exists()
    )
    query = select(
        t.Cycle.number,
        t.Cycle.name,
        t.Cycle.state,
        t.Cycle.started_at,
        t.Cycle.ended_at,
        t.Cycle.note,
        reported.label("reported"),
    )
    promoted = why_promoted(session)
    listed = [ListedCycle(*row) for row in session.execute(query.order_by(t.Cycle.number.desc()))]
    listed = [one._replace(note=one.note or promoted.get(one.number)) for one in listed]
    loop = loop_now(session)
    if loop.open_cycle is None:
        return listed
    now = "waits for a decision" if loop.waiting else loop.open_cycle.left
    return [one._replace(now=now) if one.number == loop.open_cycle.number else one for one in listed]


def _report(session: Session, number: int) -> tuple[str, CycleCost]:
    """Where the files of the cycle's newest report lie, and what the cycle cost.

    Raises:
        ApiError: 404, there is no such cycle, or no report of it.
    """
    cycle_id = session.scalars(select(t.Cycle.id).where(t.Cycle.number == number)).one_or_none()
    if cycle_id is None:
        raise ApiError(404, "no_cycle", f"There is no cycle {number}. The page of cycles lists those there are.")
    digest = ledger.newest_of(session, cycle_id, "report")
    if digest is None:
        raise ApiError(404, "no_report", f"Cycle {number} has no report yet; it is written when the cycle ends.")
    return ledger.place_of(session, digest), cost_of(session, cycle_id)


def _read(desk: Desk, number: int, place: str) -> str:
    store = desk.feedback.store
    if store is None or not store.exists(place):
        raise ApiError(
            404,
            "no_report",
            f"The report of cycle {number} ({place[:19]}) is not in the artifact store that this app was given. "
            "Set ORCHESTRATOR_ARTIFACT_URL to the one that the workers write to.",
        )
    file = store.fetch(place) / PAGE
    if not file.exists():
        raise ApiError(
            404,
            "no_page",
            f"The report of cycle {number} is from before reports were pages. "
            f"`orchestrator cycle show {number}` prints it.",
        )
    return file.read_text(encoding="utf-8")


def _filled(html: str, cost: CycleCost) -> str:
    """The stored page with what is in no artifact."""
    html = html.replace(ABOVE, '<p><a href="/desk/cycles">All cycles</a></p>', 1)
    return html.replace(COST, rendered("desk/cost.html", cost=cost), 1)
