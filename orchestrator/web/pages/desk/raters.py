"""The desk's raters: the list, one of them, the dialogues they wrote, and what is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from db import tables as t
from orchestrator.conversations.transcripts import dialogues_of, whole_dialogue
from orchestrator.errors import ApiError
from orchestrator.people import access, quality, raters, withdrawal
from orchestrator.people.tasks import TASKS
from orchestrator.web.pages.desk.live import card
from orchestrator.web.pages.desk.shared import ROWS, Desk
from orchestrator.web.pages.shell import Id, go_to, text_of

PageNumber = Annotated[int, Query(ge=1, le=10_000, alias="page")]


def add_raters(router: APIRouter, desk: Desk) -> None:
    """The routes of the list of raters, of one of them, and of what is done with one."""
    _add_list(router, desk)
    _add_one(router, desk)
    _add_status(router, desk)
    _add_withdrawal(router, desk)


def _add_list(router: APIRouter, desk: Desk) -> None:
    @router.get("")
    def by_volume(request: Request, number: PageNumber = 1) -> HTMLResponse:
        """Raters, those with most comparisons first."""

        def work(session: Session) -> Mapping[str, object]:
            rows = quality.raters_by_volume(session, ROWS + 1, (number - 1) * ROWS)
            agreement = quality.agreement(session)
            return {
                **card(session),
                "raters": rows[:ROWS], "agreement": agreement, "number": number, "more": len(rows) > ROWS,
                "failing": desk.feedback.outside.failing,
            }  # fmt: skip

        return desk.show(request, "raters.html", work)


def _add_one(router: APIRouter, desk: Desk) -> None:
    @router.get("/raters/{rater_id}")
    def one(rater_id: Id, request: Request, number: PageNumber = 1) -> HTMLResponse:
        """One rater: figures, status, and the dialogues to read."""

        def work(session: Session) -> Mapping[str, object]:
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


def _add_status(router: APIRouter, desk: Desk) -> None:
    @router.post("/raters/{rater_id}/status")
    async def set_status(rater_id: Id, request: Request) -> Response:
        """Make a rater select, normal or banned; holds from the next request on."""

        def work(session: Session, form: FormData) -> None:
            raters.set_status(session, handle_of(session, rater_id), text_of(form, "status"))

        await desk.act(request, work, "set_status", lambda form: f"rater {rater_id}: {text_of(form, 'status')}")
        return go_to(f"/desk/raters/{rater_id}")

    @router.post("/raters/{rater_id}/sign-out")
    async def sign_out_everywhere(rater_id: Id, request: Request) -> Response:
        """End every session of a rater."""
        await desk.act(
            request,
            lambda session, form: access.end_sessions_of(session, rater_id),
            "sign_out_everywhere",
            f"rater {rater_id}",
        )
        return go_to(f"/desk/raters/{rater_id}")


def _add_withdrawal(router: APIRouter, desk: Desk) -> None:
    @router.get("/raters/{rater_id}/touched")
    def touched(rater_id: Id, request: Request) -> HTMLResponse:
        """What a rater's comparisons went into; and the way out of every future set."""

        def work(session: Session) -> Mapping[str, object]:
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

        await desk.act(request, work, "withdraw", f"rater {rater_id}")
        return go_to(f"/desk/raters/{rater_id}/touched")


def handle_of(session: Session, rater_id: int) -> str:
    """The handle of a rater; ApiError 404 where there is none."""
    handle = session.scalar(select(t.Rater.handle).where(t.Rater.id == rater_id))
    if handle is None:
        raise ApiError(404, "not_found", f"There is no rater {rater_id}.")
    return handle


def add_dialogues(router: APIRouter, desk: Desk) -> None:
    @router.get("/dialogues/{dialogue_id}")
    def read(dialogue_id: Id, request: Request) -> HTMLResponse:
        """A dialogue with every pair and choice, to be read."""

        def work(session: Session) -> Mapping[str, object]:
            found = whole_dialogue(session, dialogue_id)
            if found is None:
                raise ApiError(404, "not_found", f"There is no dialogue {dialogue_id}.")
            return {"dialogue": found}

        return desk.show(request, "dialogue.html", work)
