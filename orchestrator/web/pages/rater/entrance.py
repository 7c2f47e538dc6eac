"""How a rater comes in: links, platforms, consent, signing out; and the pages' static files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session

from orchestrator.errors import ApiError
from orchestrator.people import access
from orchestrator.people.raters import rater_by_token
from orchestrator.web.pages.rater.shared import RaterPages
from orchestrator.web.pages.shell import (
    SESSION_COOKIE,
    address_of,
    check_same_site,
    forget_session,
    go_to,
    page,
    set_session,
)

STATIC = Path(__file__).parent.parent / "static"
# A name that is not here is not served.
STATIC_TYPES = {"app.css": "text/css", "rater.js": "text/javascript", "icon.svg": "image/svg+xml"}


def add_entrance(router: APIRouter, shared: RaterPages) -> None:
    """The routes of invitations and of sessions, and the static files."""
    _add_static(router)
    _add_invitations(router, shared)
    _add_signing_in(router, shared)
    _add_signing_out(router, shared)


def _add_static(router: APIRouter) -> None:
    @router.get("/static/{name}")
    def static(name: str) -> Response:
        """Style sheet, script, icon."""
        if name not in STATIC_TYPES:
            raise ApiError(404, "not_found", f"There is no file {name!r} here.")
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response((STATIC / name).read_bytes(), media_type=STATIC_TYPES[name], headers=headers)


def _add_invitations(router: APIRouter, shared: RaterPages) -> None:
    feedback = shared.feedback

    @router.get("/join/{token}")
    def invited(token: str, request: Request) -> HTMLResponse:
        """What an invitation link shows; joining takes a click, so that a link preview joins nobody."""
        feedback.transaction(lambda session: access.open_invitation(session, token))
        return page("join.html", me=shared.me(request), token=token)

    @router.post("/join/{token}")
    def join(token: str, request: Request) -> Response:
        """Become a rater by an invitation."""
        check_same_site(request)

        def work(session: Session) -> str:
            return access.begin_session(session, access.join(session, token))

        response = go_to("/")
        set_session(request, response, feedback.transaction(work))
        return response


def _add_signing_in(router: APIRouter, shared: RaterPages) -> None:
    feedback = shared.feedback

    @router.get("/sign-in")
    def ask_sign_in(request: Request) -> HTMLResponse:
        """Sign in with the token that the operator gave."""
        return page("sign_in.html", me=shared.me(request), problem=None)

    @router.post("/sign-in")
    def sign_in(request: Request, token: Annotated[str, Form(max_length=500)]) -> Response:
        """Sign in; every session has a new cookie."""
        check_same_site(request)
        feedback.admit_sign_in(address_of(request))

        def work(session: Session) -> str | None:
            rater = rater_by_token(session, token.strip())
            if rater is None or rater.banned:
                return None
            return access.begin_session(session, rater.id)

        cookie = feedback.transaction(work)
        if cookie is None:
            problem = "This token belongs to no rater who can take part. Check it, or ask the operator for a new one."
            return page("sign_in.html", status=401, problem=problem)
        response = go_to("/")
        set_session(request, response, cookie)
        return response


def _add_signing_out(router: APIRouter, shared: RaterPages) -> None:
    @router.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        """End this browser's session."""
        cookie = request.cookies.get(SESSION_COOKIE, "")
        await shared.form(request, lambda session, me, form: access.end_session(session, cookie))
        response = go_to("/sign-in")
        forget_session(response)
        return response


def add_platforms(router: APIRouter, shared: RaterPages) -> None:
    feedback = shared.feedback
    names = {"prolific": ("STUDY_ID", "PROLIFIC_PID", "SESSION_ID"), "mturk": ("hitId", "workerId", "assignmentId")}

    @router.get("/enter/{platform}")
    def arrive(platform: str, request: Request) -> HTMLResponse:
        """Where Prolific and MTurk send people; entering takes a click, so that a preview enters nobody."""
        return page("enter.html", me=None, platform=platform, ids=_ids(platform, request))

    @router.post("/enter/{platform}")
    def enter(platform: str, request: Request) -> Response:
        """Begin the visit, or go on with it."""
        check_same_site(request)
        ids = _ids(platform, request)
        study, person, submission = (ids[name] for name in names[platform])

        def work(session: Session) -> str:
            return access.begin_session(session, access.enter(session, platform, study, person, submission))

        response = go_to("/")
        set_session(request, response, feedback.transaction(work))
        return response

    def _ids(platform: str, request: Request) -> dict[str, str]:
        if platform not in names:
            raise ApiError(404, "unknown_platform", f"Platform {platform!r} is unknown; expected prolific or mturk.")
        ids = {name: request.query_params.get(name, "") for name in names[platform]}
        unusable = [name for name, value in ids.items() if not (0 < len(value) <= 100 and value.isprintable())]
        if unusable or ids.get("assignmentId") == "ASSIGNMENT_ID_NOT_AVAILABLE":
            missing = ", ".join(unusable) or "an accepted assignment"
            raise ApiError(422, "incomplete_link", f"This link lacks {missing}. Open it from the platform again.")
        return ids
