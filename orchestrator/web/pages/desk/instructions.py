"""The desk's instructions: what raters read and agree to, every version of it, and writing the next one.

A text is shown as raters will see it before it can be saved.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from orchestrator.errors import ApiError
from orchestrator.people import instruction_versions
from orchestrator.people.instruction_versions import Instructions, InstructionsError
from orchestrator.people.tasks import PROMPTS, Question
from orchestrator.store.acts import Actor, record_act
from orchestrator.web.pages.desk.shared import Desk
from orchestrator.web.pages.shell import go_to, page, text_of


def add_instructions(router: APIRouter, desk: Desk) -> None:
    """The routes of instructions."""
    _add_list(router, desk)
    _add_reading(router, desk)
    _add_preview(router, desk)
    _add_saving(router, desk)


def _add_list(router: APIRouter, desk: Desk) -> None:
    @router.get("/instructions")
    def listing(request: Request) -> HTMLResponse:
        """What raters are told about each question now, and every version before."""

        def work(session: Session) -> dict[str, Any]:
            return {"questions": [_versions(session, question) for question in PROMPTS]}

        return desk.show(request, "instructions.html", work)


def _versions(session: Session, question: Question) -> dict[str, Any]:
    *written, shipped = instruction_versions.versions(session, question)
    rows = [_row(session, told, "past") for told in written] + [_row(session, shipped, "past")]
    # The desk's first followed what was shipped then; a shipped one that does not precede it came later.
    if written and shipped.number >= written[-1].number:
        rows[-1] = _row(session, shipped, "shipped since, not in use")
    rows[0]["state"] = "what raters read now"
    return {"question": question, "prompt": PROMPTS[question], "now": rows[0]["told"], "rows": rows}


def _row(session: Session, told: Instructions, state: str) -> dict[str, Any]:
    return {"told": told, "agreed": instruction_versions.num_agreed(session, told.version), "state": state}


def _add_reading(router: APIRouter, desk: Desk) -> None:
    @router.get("/instructions/{question}/{key}")
    def read(question: str, key: str, request: Request) -> HTMLResponse:
        """One version, as raters see it."""

        def work(session: Session) -> dict[str, Any]:
            told = _found(session, question, key)
            now = instruction_versions.current(session, told.question)
            return {"told": told, "now": now, "agreed": instruction_versions.num_agreed(session, told.version)}

        return desk.show(request, "instructions_read.html", work)

    @router.get("/instructions/{question}/{key}/edit")
    def edit(question: str, key: str, request: Request) -> HTMLResponse:
        """Write the next version, beginning from this one."""

        def work(session: Session) -> dict[str, Any]:
            told = _found(session, question, key)
            now = instruction_versions.current(session, told.question)
            return _form(session, now, told.text, told.page)

        return desk.show(request, "instructions_edit.html", work)


def _add_preview(router: APIRouter, desk: Desk) -> None:
    @router.post("/instructions/{question}/preview")
    async def preview(question: str, request: Request) -> Response:
        """What was written, as raters would see it; nothing is saved."""

        def work(session: Session, form: FormData, actor: Actor) -> dict[str, Any]:
            now = instruction_versions.current(session, _known(question))
            text, whole = text_of(form, "text"), text_of(form, "whole")
            shown = _form(session, now, text, whole) | {"who": actor.name}
            try:
                return shown | {"draft": instruction_versions.draft(now, text_of(form, "began_from"), text, whole)}
            except InstructionsError as error:
                return shown | {"problem": str(error)}

        return _shown(desk, request, await desk.act_as(request, work))


def _add_saving(router: APIRouter, desk: Desk) -> None:
    @router.post("/instructions/{question}")
    async def save(question: str, request: Request) -> Response:
        """Make what was looked at the next version; of two who save at once one is told, and keeps the text."""

        def work(session: Session, form: FormData, actor: Actor) -> dict[str, Any] | None:
            text, whole = text_of(form, "text"), text_of(form, "whole")
            try:
                saved = instruction_versions.save(
                    session, _known(question), text_of(form, "began_from"), text, whole, by=actor.name
                )
            except InstructionsError as error:
                now = instruction_versions.current(session, _known(question))
                return _form(session, now, text, whole) | {"who": actor.name, "problem": str(error)}
            record_act(session, actor, "write_instructions", f"instructions {saved.version}")
            return None

        problem = await desk.act_as(request, work)
        return go_to("/desk/instructions") if problem is None else _shown(desk, request, problem)


def _form(session: Session, now: Instructions, text: str, whole: str) -> dict[str, Any]:
    agreed = instruction_versions.num_agreed(session, now.version)
    return {"now": now, "agreed": agreed, "text": text, "whole": whole, "prompt": PROMPTS[now.question]} | {
        "draft": None,
        "problem": None,
        "longest_text": instruction_versions.LONGEST_TEXT,
        "longest_page": instruction_versions.LONGEST_PAGE,
    }


def _shown(desk: Desk, request: Request, shown: dict[str, Any]) -> HTMLResponse:
    status = 200 if shown["problem"] is None else 422
    return page("desk/instructions_edit.html", status=status, desk=True, csrf=desk.csrf(request), **shown)


def _known(question: str) -> Question:
    if question not in PROMPTS:
        raise ApiError(404, "not_found", f"Nobody is asked what is {question}; /desk/instructions has all questions.")
    return question


def _found(session: Session, question: str, key: str) -> Instructions:
    try:
        return instruction_versions.version_of(session, _known(question), key)
    except InstructionsError as error:
        raise ApiError(404, "not_found", str(error)) from None
