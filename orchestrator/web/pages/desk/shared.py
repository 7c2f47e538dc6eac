"""What the pages of the desk share: who asks, work in a transaction, and their name on what they did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from db import tables as t
from orchestrator.errors import ApiError, OrchestratorError
from orchestrator.people.operators import ADMIN, as_actor, operator_of
from orchestrator.store.acts import Actor, record_act
from orchestrator.web.desk_access import desk_csrf, is_desk_cookie, operator_in
from orchestrator.web.pages.shell import check_same_site, page, page_of, text_of
from orchestrator.web.service import Feedback

R = TypeVar("R")

DESK_COOKIE = "orchestrator_desk"
ROWS = 100
"""Rows on a page of raters, dialogues or pairings."""
OFFERED = 30
"""The newest artifacts, among which a form lets choose; older ones by the command."""


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

    def actor(self, session: Session, request: Request) -> Actor:
        """Who asks; raises DeskSignInFirst where nobody is signed in, or the operator has ended."""
        self.csrf(request)
        whose = operator_in(request.cookies[DESK_COOKIE])
        if whose is None:
            return ADMIN
        operator = operator_of(session, *whose)
        if operator is None:
            raise DeskSignInFirst
        return as_actor(operator)

    def show(self, request: Request, template: str, work: Callable[[Session], Mapping[str, object]]) -> HTMLResponse:
        """A page of what `work` reads."""

        def read(session: Session) -> Mapping[str, object]:
            return {"who": self.actor(session, request).name, **work(session)}

        return self.page(request, template, self.feedback.transaction(read))

    def page(self, request: Request, template: str, values: Mapping[str, object], *, status: int = 200) -> HTMLResponse:
        """A page of what was read already, whose forms this browser may send."""
        shared = {"desk": True, "csrf": self.csrf(request)}
        return page_of(f"desk/{template}", {**shared, **values}, status=status)

    async def act(
        self, request: Request, work: Callable[[Session, FormData], R], did: str, to: str | Callable[[FormData], str]
    ) -> R:
        """Do `work` with a form of the desk's own, and write down who did it.

        `did` is the act in a word ("end_queue"), `to` what it was done to, as people name it ("queue 3").
        """

        def recorded(session: Session, form: FormData, actor: Actor) -> R:
            done = work(session, form)
            record_act(session, actor, did, to if isinstance(to, str) else to(form))
            return done

        return await self.act_as(request, recorded)

    async def act_as(self, request: Request, work: Callable[[Session, FormData, Actor], R]) -> R:
        """The same where `work` itself says who did it; a person's mistake in it is told in its words."""
        csrf = self.csrf(request)
        check_same_site(request)
        form = await request.form(max_fields=50)
        if text_of(form, "csrf") != csrf:
            raise ApiError(403, "stale_form", "This page is from an earlier session. Reload it and send again.")

        def worked(session: Session) -> R:
            actor = self.actor(session, request)
            try:
                return work(session, form, actor)
            except OrchestratorError as error:
                raise ApiError(422, "unusable", str(error)) from None

        return await run_in_threadpool(self.feedback.transaction, worked)


def newest_artifacts(session: Session, kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """Digests and what to call them, the newest first."""
    rows = session.execute(
        select(t.Artifact.digest, t.Artifact.kind, t.Cycle.number)
        .outerjoin(t.Cycle, t.Cycle.id == t.Artifact.cycle_id)
        .where(t.Artifact.kind.in_(kinds))
        .order_by(t.Artifact.id.desc())
        .limit(OFFERED)
    )
    named: dict[str, str] = {}
    for digest, kind, cycle in rows:
        of = "" if cycle is None else f", cycle {cycle}"
        named.setdefault(digest, f"{digest[7:19]} ({kind.replace('_', ' ')}{of})")
    return list(named.items())


def desk_sign_in_first(request: Request) -> Response:
    """The answer to somebody who is not signed in at the desk."""
    return page("desk/sign_in.html", status=401, desk=False, csrf=None, problem=None, closed=False)
