"""The pages of people who write replies: one conversation at a time, and a field for what they would answer."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from orchestrator.conversations import written_replies
from orchestrator.conversations.schemas import MAX_MESSAGE_CHARS
from orchestrator.people.access import SignedIn
from orchestrator.people.tasks import warns_about
from orchestrator.web.pages.rater.shared import RaterPages, written
from orchestrator.web.pages.shell import Id, go_to, page, text_of


def add_writing(router: APIRouter, shared: RaterPages) -> None:
    """The routes of writers."""

    @router.get("/write")
    def any_reply(request: Request) -> Response:
        """A reply that waits, or that none does."""
        me, found = shared.for_me(request, lambda session, me: written_replies.next_to_write(session, me.rater))
        return page("write.html", me=me, wanted=None) if found is None else go_to(f"/write/{found.candidate_id}")

    @router.get("/write/{candidate_id}")
    def one(candidate_id: Id, request: Request) -> HTMLResponse:
        """The conversation, and a field for the reply."""
        me, found = shared.for_me(
            request, lambda session, me: written_replies.read_to_write(session, me.rater, candidate_id)
        )
        warns = warns_about(found.task, found.question)
        return page("write.html", me=me, wanted=found, warns=warns, max_chars=MAX_MESSAGE_CHARS)

    @router.post("/write/{candidate_id}")
    async def write(candidate_id: Id, request: Request) -> Response:
        """Keep the reply."""

        def work(session: Session, me: SignedIn, form: FormData) -> bool:
            return written_replies.write_reply(session, me.rater, candidate_id, written(text_of(form, "content")))

        await shared.form(request, work)
        return go_to("/write")
