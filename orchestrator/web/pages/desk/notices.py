"""The desk's announcements and what raters reported."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.people import notices
from orchestrator.web.pages.desk.shared import ROWS, Desk
from orchestrator.web.pages.shell import Id, go_to, text_of


def add_notices(router: APIRouter, desk: Desk) -> None:
    @router.get("/notices")
    def listing(request: Request) -> HTMLResponse:
        """What raters reported, and what they are told."""

        def work(session: Session) -> Mapping[str, object]:
            current = select(t.Announcement).where(t.Announcement.ended_at.is_(None))
            return {
                "reports": notices.problem_reports(session, limit=ROWS),
                "handled": notices.problem_reports(session, handled=True, limit=20),
                "announcements": session.scalars(current.order_by(t.Announcement.id.desc())).all(),
            }

        return desk.show(request, "notices.html", work)

    @router.post("/announcements")
    async def announce(request: Request) -> Response:
        """Tell every rater something."""
        await desk.act(
            request,
            lambda session, form: notices.announce(session, text_of(form, "content")).id,
            "announce",
            "every rater",
        )
        return go_to("/desk/notices")

    @router.post("/announcements/{announcement_id}/end")
    async def end_announcement(announcement_id: Id, request: Request) -> Response:
        """Show an announcement no longer."""
        await desk.act(
            request,
            lambda session, form: notices.end_announcement(session, announcement_id),
            "end_announcement",
            f"announcement {announcement_id}",
        )
        return go_to("/desk/notices")

    @router.post("/problems/{report_id}/handled")
    async def handled(report_id: Id, request: Request) -> Response:
        """Mark a problem report as seen to."""
        await desk.act(
            request,
            lambda session, form: notices.handle_report(session, report_id),
            "handle_report",
            f"problem report {report_id}",
        )
        return go_to("/desk/notices")
