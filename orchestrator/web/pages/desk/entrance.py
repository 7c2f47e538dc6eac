"""Signing in and out at the desk."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.people.operators import operator_with
from orchestrator.web.desk_access import DESK_LIFETIME_S, desk_cookie, is_admin_token
from orchestrator.web.pages.desk.shared import DESK_COOKIE, Desk
from orchestrator.web.pages.shell import address_of, check_same_site, go_to, is_https, page


def add_entrance(router: APIRouter, desk: Desk) -> None:
    @router.get("/sign-in")
    def ask_sign_in() -> HTMLResponse:
        """Sign in with a token of one's own, or the admin token."""
        closed = desk.admin_token is None
        return page("desk/sign_in.html", desk=False, csrf=None, problem=None, closed=closed)

    @router.post("/sign-in")
    async def sign_in(request: Request, token: Annotated[str, Form(max_length=1000)]) -> Response:
        """Begin a session of the desk."""
        check_same_site(request)
        desk.feedback.admit_sign_in(address_of(request))
        known, operator = await run_in_threadpool(_whose, desk, token.strip())
        if desk.admin_token is None or not known:
            closed = desk.admin_token is None
            problem = "This is not the admin token, and nobody’s own."
            return page("desk/sign_in.html", status=401, desk=False, csrf=None, problem=problem, closed=closed)
        response = go_to("/desk")
        # Strict: no link from elsewhere opens the desk.
        response.set_cookie(
            DESK_COOKIE,
            desk_cookie(desk.admin_token, operator=operator),
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
        await desk.act_as(request, lambda session, form, actor: None)
        response = go_to("/desk/sign-in")
        response.delete_cookie(DESK_COOKIE, path="/desk", httponly=True, samesite="strict")
        return response


def _whose(desk: Desk, token: str) -> tuple[bool, tuple[int, str] | None]:
    """Whether a token opens the desk, and the operator whose it is, by id and token digest; none is the admin's."""
    if is_admin_token(token, desk.admin_token):
        return True, None
    operator = desk.feedback.transaction(lambda session: operator_with(session, token))
    return operator is not None, (operator.id, operator.token_digest) if operator is not None else None
