"""The desk: pages for whoever looks after raters. Who they are, what they did and wrote, and how people come in.

Signed in with the admin token, apart from raters and from programs. Everything here is also a command.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from db import tables as t
from orchestrator.conversations.transcripts import dialogues_of, whole_dialogue
from orchestrator.http_shared.asgi import ApiError
from orchestrator.judging.standings import elo_tables
from orchestrator.people import access, notices, quality, raters, withdrawal
from orchestrator.people.tasks import TASKS
from orchestrator.web.desk_access import DESK_LIFETIME_S, desk_cookie, is_admin_token
from orchestrator.web.pages.desk.pairings import add_contestants
from orchestrator.web.pages.desk.shared import DESK_COOKIE, ROWS, Desk, Id
from orchestrator.web.pages.desk.work import add_work
from orchestrator.web.pages.shell import PageRoute, address_of, check_same_site, go_to, is_https, page, text_of
from orchestrator.web.service import Feedback

PageNumber = Annotated[int, Query(ge=1, le=10_000, alias="page")]


def desk_pages(feedback: Feedback) -> APIRouter:
    """The routes of the desk."""
    desk = Desk(feedback)
    router = APIRouter(prefix="/desk", include_in_schema=False, route_class=PageRoute)
    _add_entrance(router, desk)
    _add_raters(router, desk)
    _add_dialogues(router, desk)
    _add_invitations(router, desk)
    add_work(router, desk)
    add_contestants(router, desk)
    _add_notices(router, desk)
    _add_elo(router, desk)
    return router


def _add_entrance(router: APIRouter, desk: Desk) -> None:
    @router.get("/sign-in")
    def ask_sign_in() -> HTMLResponse:
        """Sign in with the admin token."""
        closed = desk.admin_token is None
        return page("desk/sign_in.html", desk=False, csrf=None, problem=None, closed=closed)

    @router.post("/sign-in")
    def sign_in(request: Request, token: Annotated[str, Form(max_length=1000)]) -> Response:
        """Begin a session of the desk."""
        check_same_site(request)
        desk.feedback.admit_sign_in(address_of(request))
        if desk.admin_token is None or not is_admin_token(token.strip(), desk.admin_token):
            closed = desk.admin_token is None
            problem = "This is not the admin token."
            return page("desk/sign_in.html", status=401, desk=False, csrf=None, problem=problem, closed=closed)
        response = go_to("/desk")
        # Strict: no link from elsewhere opens the desk.
        response.set_cookie(
            DESK_COOKIE,
            desk_cookie(desk.admin_token),
            max_age=DESK_LIFETIME_S,
            httponly=True,
            samesite="strict",
            secure=is_https(request),
            path="/desk",
        )
        return response

    @router.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        """Leave the desk in this browser."""
        await desk.act(request, lambda session, form: None)
        response = go_to("/desk/sign-in")
        response.delete_cookie(DESK_COOKIE, path="/desk", httponly=True, samesite="strict")
        return response


def _add_raters(router: APIRouter, desk: Desk) -> None:
    @router.get("")
    def by_volume(request: Request, number: PageNumber = 1) -> HTMLResponse:
        """Raters, those with most comparisons first."""

        def work(session: Session) -> dict[str, Any]:
            rows = quality.raters_by_volume(session, ROWS + 1, (number - 1) * ROWS)
            agreement = quality.agreement(session)
            return {"raters": rows[:ROWS], "agreement": agreement, "number": number, "more": len(rows) > ROWS}

        return desk.show(request, "raters.html", work)

    @router.get("/raters/{rater_id}")
    def one(rater_id: Id, request: Request, number: PageNumber = 1) -> HTMLResponse:
        """One rater: figures, status, and the dialogues to read."""

        def work(session: Session) -> dict[str, Any]:
            found = quality.figures_of(session, rater_id)
            if found is None:
                raise ApiError(404, "not_found", f"There is no rater {rater_id}.")
            rows = dialogues_of(session, rater_id, ROWS + 1, (number - 1) * ROWS)
            return {
                "rater": found,
                "agreement": quality.agreement(session).get(rater_id),
                "statuses": raters.STATUSES,
                "times": quality.times_by_task(session, rater_id),
                "repeats": quality.repeated_openings(session, rater_id),
                "dialogues": rows[:ROWS],
                "number": number,
                "more": len(rows) > ROWS,
                "tasks": TASKS,
            }

        return desk.show(request, "rater.html", work)

    @router.post("/raters/{rater_id}/status")
    async def set_status(rater_id: Id, request: Request) -> Response:
        """Make a rater select, normal or banned; holds from the next request on."""

        def work(session: Session, form: FormData) -> None:
            raters.set_status(session, handle_of(session, rater_id), text_of(form, "status"))

        await desk.act(request, work)
        return go_to(f"/desk/raters/{rater_id}")

    @router.get("/raters/{rater_id}/touched")
    def touched(rater_id: Id, request: Request) -> HTMLResponse:
        """What a rater's comparisons went into; and the way out of every future set."""

        def work(session: Session) -> dict[str, Any]:
            handle = handle_of(session, rater_id)
            return {"id": rater_id, "handle": handle, "touched": withdrawal.touched(session, rater_id)}

        return desk.show(request, "touched.html", work)

    @router.post("/raters/{rater_id}/withdraw")
    async def withdraw(rater_id: Id, request: Request) -> Response:
        """Take a rater out of every future comparison set, for good; the handle typed again says that it is meant."""

        def work(session: Session, form: FormData) -> None:
            handle = handle_of(session, rater_id)
            if text_of(form, "handle").strip() != handle:
                raise ApiError(422, "unusable", f"Nothing was changed: type {handle!r} to withdraw this rater.")
            withdrawal.withdraw(session, handle, text_of(form, "note").strip())

        await desk.act(request, work)
        return go_to(f"/desk/raters/{rater_id}/touched")

    @router.post("/raters/{rater_id}/sign-out")
    async def sign_out_everywhere(rater_id: Id, request: Request) -> Response:
        """End every session of a rater."""
        await desk.act(request, lambda session, form: access.end_sessions_of(session, rater_id))
        return go_to(f"/desk/raters/{rater_id}")


def handle_of(session: Session, rater_id: int) -> str:
    """The handle of a rater; ApiError 404 where there is none."""
    handle = session.scalar(select(t.Rater.handle).where(t.Rater.id == rater_id))
    if handle is None:
        raise ApiError(404, "not_found", f"There is no rater {rater_id}.")
    return handle


def _add_dialogues(router: APIRouter, desk: Desk) -> None:
    @router.get("/dialogues/{dialogue_id}")
    def read(dialogue_id: Id, request: Request) -> HTMLResponse:
        """A dialogue with every pair and choice, to be read."""

        def work(session: Session) -> dict[str, Any]:
            found = whole_dialogue(session, dialogue_id)
            if found is None:
                raise ApiError(404, "not_found", f"There is no dialogue {dialogue_id}.")
            return {"dialogue": found}

        return desk.show(request, "dialogue.html", work)


def _add_invitations(router: APIRouter, desk: Desk) -> None:
    def _all(session: Session) -> dict[str, Any]:
        joined = func.count(t.InvitationUse.rater_id)
        rows = session.execute(
            select(t.Invitation, joined)
            .outerjoin(t.InvitationUse, t.InvitationUse.invitation_id == t.Invitation.id)
            .group_by(t.Invitation.id)
            .order_by(t.Invitation.id.desc())
        ).all()
        came, finished = func.count(t.Visit.id), func.count(t.Visit.completed_at)
        studies = session.execute(
            select(t.Study, came, finished)
            .outerjoin(t.Visit, t.Visit.study_id == t.Study.id)
            .group_by(t.Study.id)
            .order_by(t.Study.id.desc())
        ).all()
        return {"invitations": [tuple(row) for row in rows], "studies": [tuple(row) for row in studies], "link": None}

    @router.get("/invitations")
    def listing(request: Request) -> HTMLResponse:
        """Invitations and studies: how people come in."""
        return desk.show(request, "invitations.html", _all)

    @router.post("/invitations")
    async def invite(request: Request) -> Response:
        """Make an invitation; its link is shown in the answer, once."""

        def work(session: Session, form: FormData) -> dict[str, Any]:
            uses, days = text_of(form, "max_uses").strip(), text_of(form, "days").strip()
            if not all(value == "" or (value.isdecimal() and 0 < int(value) <= 10_000) for value in (uses, days)):
                raise ApiError(422, "not_a_number", "Give whole numbers from 1 to 10,000, or nothing.")
            _, token = access.create_invitation(
                session,
                text_of(form, "label"),
                max_uses=int(uses) if uses else None,
                valid_for=timedelta(days=int(days)) if days else None,
            )
            base = f"{'https' if is_https(request) else 'http'}://{request.headers.get('host', '')}"
            return _all(session) | {"link": f"{base}/join/{token}"}

        shown = await desk.act(request, work)
        return page("desk/invitations.html", desk=True, csrf=desk.csrf(request), **shown)

    @router.post("/invitations/{invitation_id}/end")
    async def end(invitation_id: Id, request: Request) -> Response:
        """Let nobody else join by it."""
        await desk.act(request, lambda session, form: access.end_invitation(session, invitation_id))
        return go_to("/desk/invitations")


def _add_notices(router: APIRouter, desk: Desk) -> None:
    @router.get("/notices")
    def listing(request: Request) -> HTMLResponse:
        """What raters reported, and what they are told."""

        def work(session: Session) -> dict[str, Any]:
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
        await desk.act(request, lambda session, form: notices.announce(session, text_of(form, "content")).id)
        return go_to("/desk/notices")

    @router.post("/announcements/{announcement_id}/end")
    async def end_announcement(announcement_id: Id, request: Request) -> Response:
        """Show an announcement no longer."""
        await desk.act(request, lambda session, form: notices.end_announcement(session, announcement_id))
        return go_to("/desk/notices")

    @router.post("/problems/{report_id}/handled")
    async def handled(report_id: Id, request: Request) -> Response:
        """Mark a problem report as seen to."""
        await desk.act(request, lambda session, form: notices.handle_report(session, report_id))
        return go_to("/desk/notices")


def _add_elo(router: APIRouter, desk: Desk) -> None:
    @router.get("/elo")
    def elo(request: Request) -> HTMLResponse:
        """Elo of every policy that raters compared, helpful and harmless apart, as of now."""
        return desk.show(request, "elo.html", lambda session: {"tables": elo_tables(session)})
