"""The page on which a rater reports a problem."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from orchestrator.conversations import dialogues
from orchestrator.errors import ApiError
from orchestrator.people.access import SignedIn
from orchestrator.people.notices import NoticeError, report_problem
from orchestrator.web.pages.rater.shared import RaterPages, key_of
from orchestrator.web.pages.shell import go_to, page, text_of

DialogueNumber = Annotated[int | None, Query(ge=1, le=2**63 - 1)]


def add_problems(router: APIRouter, shared: RaterPages) -> None:
    """The routes of problem reports."""

    @router.get("/problem")
    def ask(request: Request, dialogue: DialogueNumber = None, sent: bool = False) -> HTMLResponse:
        """The form to report a problem; from a dialogue it says which."""
        me, _ = shared.for_me(request, lambda session, me: _own_dialogue(session, me, dialogue))
        return page("problem.html", me=me, dialogue_id=dialogue, sent=sent, key=secrets.token_urlsafe(12))

    @router.post("/problem")
    async def report(request: Request) -> Response:
        """Keep what the rater reports."""

        def work(session: Session, me: SignedIn, form: FormData) -> int | None:
            about = text_of(form, "dialogue")
            dialogue_id = int(about) if about.isdecimal() and len(about) <= 18 else None
            _own_dialogue(session, me, dialogue_id)
            try:
                report_problem(session, me.rater.id, text_of(form, "content"), key_of(form), dialogue_id)
            except NoticeError as error:
                raise ApiError(422, "unusable", str(error)) from None
            return dialogue_id

        _, dialogue_id = await shared.form(request, work)
        return go_to("/problem?sent=1" + (f"&dialogue={dialogue_id}" if dialogue_id else ""))

    def _own_dialogue(session: Session, me: SignedIn, dialogue_id: int | None) -> None:
        if dialogue_id is not None and dialogues.owner_of(session, dialogue_id) != me.rater.id:
            raise dialogues.not_yours("dialogue", dialogue_id)
