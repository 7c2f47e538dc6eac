"""What the pages of the desk share: whether the admin asks, and work in a transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from orchestrator.errors import ApiError, OrchestratorError
from orchestrator.web.desk_access import desk_csrf, is_desk_cookie
from orchestrator.web.pages.shell import check_same_site, page, text_of
from orchestrator.web.service import Feedback

R = TypeVar("R")

DESK_COOKIE = "orchestrator_desk"
ROWS = 100
"""Rows on a page of raters, dialogues or pairings."""


class DeskSignInFirst(Exception):
    """Nobody is signed in at the desk; the page that says how is shown in place of the one asked for."""


class Desk:
    """What the handlers share: who asks, and work in a transaction for them."""

    def __init__(self, feedback: Feedback) -> None:
        self.feedback = feedback
        self.admin_token = feedback.config.admin_token

    def csrf(self, request: Request) -> str:
        """What this browser's forms must carry; raises DeskSignInFirst where nobody is signed in."""
        cookie = request.cookies.get(DESK_COOKIE)
        if self.admin_token is None or cookie is None or not is_desk_cookie(cookie, self.admin_token):
            raise DeskSignInFirst
        return desk_csrf(cookie, self.admin_token)

    def show(self, request: Request, template: str, work: Callable[[Session], dict[str, Any]]) -> HTMLResponse:
        """A page of what `work` reads."""
        csrf = self.csrf(request)
        return page(f"desk/{template}", desk=True, csrf=csrf, **self.feedback.transaction(work))

    async def act(self, request: Request, work: Callable[[Session, FormData], R]) -> R:
        """Do `work` with a form of the desk's own; a person's mistake in it is told in its words."""
        csrf = self.csrf(request)
        check_same_site(request)
        form = await request.form(max_fields=50)
        if text_of(form, "csrf") != csrf:
            raise ApiError(403, "stale_form", "This page is from an earlier session. Reload it and send again.")

        def worked(session: Session) -> R:
            try:
                return work(session, form)
            except OrchestratorError as error:
                raise ApiError(422, "unusable", str(error)) from None

        return await run_in_threadpool(self.feedback.transaction, worked)


def desk_sign_in_first(request: Request) -> Response:
    """The answer to somebody who is not signed in at the desk."""
    return page("desk/sign_in.html", status=401, desk=False, csrf=None, problem=None, closed=False)
