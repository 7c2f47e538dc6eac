"""Signing in and out at the desk."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from orchestrator.web.desk_access import DESK_LIFETIME_S, desk_cookie, is_admin_token
from orchestrator.web.pages.desk.shared import DESK_COOKIE, Desk
from orchestrator.web.pages.shell import address_of, check_same_site, go_to, is_https, page


def add_entrance(router: APIRouter, desk: Desk) -> None:
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
