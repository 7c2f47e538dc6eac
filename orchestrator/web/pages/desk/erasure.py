"""The desk's erasure of a rater: what it reaches, the second look, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from db import tables as t
from orchestrator.errors import ApiError
from orchestrator.people import erasure, withdrawal
from orchestrator.people.raters import RaterError
from orchestrator.store.acts import Actor, reason_of, record_act
from orchestrator.web.erasing import Erasing
from orchestrator.web.pages.desk.raters import handle_of
from orchestrator.web.pages.desk.shared import Desk
from orchestrator.web.pages.shell import Id, go_to, text_of

ACT = "erase"


@dataclass(frozen=True)
class Begun:
    """How far an erasure is."""

    row: t.Erasure
    by: str
    """In words: by whom it was begun, or how."""
    artifacts: int
    """Written anew so far."""
    running: bool
    problem: str | None
    """What stopped it in this process."""


def add_erasure(router: APIRouter, desk: Desk) -> None:
    """The routes of erasing one rater."""
    store = desk.feedback.store
    erasing = None if store is None else Erasing(desk.feedback.config.database_url, store)
    _add_page(router, desk, erasing)
    _add_beginning(router, desk, erasing)


def _add_page(router: APIRouter, desk: Desk, erasing: Erasing | None) -> None:
    @router.get("/raters/{rater_id}/erase")
    def look(rater_id: Id, request: Request) -> HTMLResponse:
        """What erasing a rater reaches, and the form; how far it is once it was begun."""

        def work(session: Session) -> Mapping[str, object]:
            return {
                "id": rater_id,
                "handle": handle_of(session, rater_id),
                "here": erasing is not None,
                "begun": _begun(session, rater_id, erasing),
                "touched": withdrawal.touched(session, rater_id),
                "reach": erasure.reach(session, rater_id),
                "with_text": erasure.WITH_TEXT,
                "hindrance": _hindrance(session),
            }

        return desk.show(request, "erase.html", work)


def _add_beginning(router: APIRouter, desk: Desk, erasing: Erasing | None) -> None:
    @router.post("/raters/{rater_id}/erase")
    async def erase(rater_id: Id, request: Request) -> Response:
        """Forget a rater, for good; the handle typed again says that it is meant."""

        def work(session: Session, form: FormData, actor: Actor) -> int:
            handle = handle_of(session, rater_id)
            if text_of(form, "handle").strip() != handle:
                raise ApiError(422, "unusable", f"Nothing was changed: type {handle!r} to erase this rater.")
            begun = erasure.begin(session, handle, reason_of(text_of(form, "reason")))
            # By its id: the record of who erased must not keep the name that is erased.
            record_act(session, actor, ACT, f"rater {rater_id}")
            return begun.id

        return await _carried_out(desk, request, rater_id, erasing, work)

    @router.post("/raters/{rater_id}/erase/go-on")
    async def go_on(rater_id: Id, request: Request) -> Response:
        """Carry out what was begun and cut off."""

        def work(session: Session, form: FormData, actor: Actor) -> int:
            begun = _row(session, rater_id)
            if begun is None:
                raise ApiError(422, "unusable", f"No erasure of rater {rater_id} was begun.")
            erasure.refuse_open_cycle(session)
            record_act(session, actor, "go_on_erasing", f"rater {rater_id}")
            return begun.id

        return await _carried_out(desk, request, rater_id, erasing, work)


async def _carried_out(
    desk: Desk,
    request: Request,
    rater_id: int,
    erasing: Erasing | None,
    work: Callable[[Session, FormData, Actor], int],
) -> Response:
    def refused_without_store(session: Session, form: FormData, actor: Actor) -> int:
        if erasing is None:
            raise ApiError(422, "unusable", "Nothing was changed: this app reaches no store. Use the command.")
        return work(session, form, actor)

    erasure_id = await desk.act_as(request, refused_without_store)
    if erasing is not None:
        erasing.start(erasure_id)
    return go_to(f"/desk/raters/{rater_id}/erase")


def _row(session: Session, rater_id: int) -> t.Erasure | None:
    return session.scalars(select(t.Erasure).where(t.Erasure.rater_id == rater_id)).one_or_none()


def _begun(session: Session, rater_id: int, erasing: Erasing | None) -> Begun | None:
    """How far an erasure is; None where none was begun."""
    row = _row(session, rater_id)
    if row is None:
        return None
    acts = select(t.OperatorAct).where(t.OperatorAct.act == ACT, t.OperatorAct.subject == f"rater {rater_id}")
    by = session.scalars(acts.order_by(t.OperatorAct.id).limit(1)).one_or_none()
    rewritten = select(func.count()).select_from(t.ErasedArtifact).where(t.ErasedArtifact.erasure_id == row.id)
    running = (erasing is not None and erasing.running(row.id)) or erasure.at_work(session, row.id)
    # It may have been completed since it was read: who is not at work any more is done, or stopped.
    session.refresh(row)
    return Begun(
        row=row,
        by="by command" if by is None else f"by {by.actor}",
        artifacts=session.scalars(rewritten).one(),
        running=running,
        problem=None if erasing is None else erasing.problem(row.id),
    )


def _hindrance(session: Session) -> str | None:
    try:
        erasure.refuse_open_cycle(session)
    except RaterError as error:
        return str(error)
    return None
