"""The desk's studies: people whom Prolific and MTurk send here."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from db import tables as t
from orchestrator.errors import ApiError
from orchestrator.people import access
from orchestrator.people.access import ENTRY_QUERIES
from orchestrator.store.acts import Actor, record_act
from orchestrator.web.pages.desk.shared import Desk
from orchestrator.web.pages.shell import Id, base_of, go_to, text_of

PLATFORMS = {"prolific": "Prolific", "mturk": "MTurk"}
MOST_COMPARISONS = 10_000


def add_studies(router: APIRouter, desk: Desk) -> None:
    """The routes of studies."""
    _add_list(router, desk)
    _add_changes(router, desk)


def _add_list(router: APIRouter, desk: Desk) -> None:
    @router.get("/studies")
    def listing(request: Request) -> HTMLResponse:
        """Studies, how many came and finished, and what to enter at the platforms."""

        def work(session: Session) -> Mapping[str, object]:
            urls = {platform: access.entry_url(base_of(request), platform) for platform in ENTRY_QUERIES}
            return {"studies": access.study_figures(session), "urls": urls, "platforms": PLATFORMS}

        return desk.show(request, "studies.html", work)


def _add_changes(router: APIRouter, desk: Desk) -> None:
    @router.post("/studies")
    async def add(request: Request) -> Response:
        """Let the people of a study enter."""

        def work(session: Session, form: FormData, actor: Actor) -> None:
            wanted = text_of(form, "comparisons").strip()
            if not (wanted.isdecimal() and len(wanted) < 9 and int(wanted) <= MOST_COMPARISONS):
                raise ApiError(422, "not_a_number", f"Choices are {wanted!r}; give a number from 1 to 10,000.")
            study = access.create_study(
                session, text_of(form, "platform"), text_of(form, "study"), text_of(form, "code"), int(wanted)
            )
            record_act(session, actor, "add_study", _named(study))

        await desk.act_as(request, work)
        return go_to("/desk/studies")

    @router.post("/studies/{study_id}/end")
    async def end(study_id: Id, request: Request) -> Response:
        """Let nobody else enter; who is in may finish and gets the code."""

        def work(session: Session, form: FormData, actor: Actor) -> None:
            study = session.get(t.Study, study_id)
            if study is None:
                raise ApiError(404, "not_found", f"There is no study {study_id}.")
            access.end_study(session, study.platform, study.external_id)
            record_act(session, actor, "end_study", _named(study))

        await desk.act_as(request, work)
        return go_to("/desk/studies")


def _named(study: t.Study) -> str:
    return f"study {study.platform}/{study.external_id}"
