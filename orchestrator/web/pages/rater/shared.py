"""What the rater's pages share: who asks, work in a transaction for them, and the fields that forms have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from orchestrator.conversations.schemas import (
    Written,
)
from orchestrator.errors import ApiError
from orchestrator.people import access
from orchestrator.people.access import SignedIn
from orchestrator.web.pages.shell import (
    SESSION_COOKIE,
    check_form,
    error_answer,
    page,
    text_of,
    wants_page,
)
from orchestrator.web.service import Feedback

R = TypeVar("R")


class SignInFirst(Exception):
    """Nobody is signed in; the page that says how is shown in place of the one asked for."""


def sign_in_first(request: Request) -> Response:
    """The answer to somebody who is not signed in."""
    if wants_page(request):
        return page("sign_in.html", status=401, problem=None)
    return error_answer(request, 401, "no_session", "You are not signed in any more. Open your invitation link again.")


class StaleForm(Exception):
    """A form of a page of before: somebody went on in another tab. The page is shown as it is now, and why."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class RaterPages:
    """What the handlers share: who asks, and work in a transaction for them."""

    def __init__(self, feedback: Feedback) -> None:
        self.feedback = feedback

    def me(self, request: Request) -> SignedIn | None:
        """Whoever is signed in, or nobody."""
        token = request.cookies.get(SESSION_COOKIE)
        return self.feedback.transaction(lambda session: access.signed_in(session, token))

    def for_me(self, request: Request, work: Callable[[Session, SignedIn], R]) -> tuple[SignedIn, R]:
        """Do `work` for whoever is signed in, in one transaction."""
        token = request.cookies.get(SESSION_COOKIE)

        def both(session: Session) -> tuple[SignedIn, R]:
            me = access.signed_in(session, token)
            if me is None:
                raise SignInFirst
            self.feedback.admit(me.rater)
            return me, work(session, me)

        return self.feedback.transaction(both)

    async def form(self, request: Request, work: Callable[[Session, SignedIn, FormData], R]) -> tuple[SignedIn, R]:
        """Do `work` with a form of whoever is signed in; a form from elsewhere is refused."""
        form = await request.form(max_fields=50)

        def checked(session: Session, me: SignedIn) -> R:
            check_form(request, form, me)
            return work(session, me, form)

        try:
            return await run_in_threadpool(self.for_me, request, checked)
        except ApiError as error:
            if error.status == 409 and wants_page(request) and {"dialogue_id", "pair_id"} & request.path_params.keys():
                raise StaleForm(error) from None
            raise


def key_of(form: FormData) -> str:
    """The form's client key: the same form sent twice is one act."""
    key = text_of(form, "key")
    if not 1 <= len(key) <= 100 or not key.isascii() or not key.isprintable():
        raise ApiError(422, "no_key", "This form is incomplete. Reload the page and try again.")
    return key


_WRITTEN: TypeAdapter[str] = TypeAdapter(Written)


def written(text: str) -> str:
    """What a person wrote, as it is stored; ApiError 422 where it is empty, too long or not text."""
    try:
        return _WRITTEN.validate_python(text)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ApiError(422, "unusable_text", f"Your text {problem}." if problem[0].islower() else problem) from None
