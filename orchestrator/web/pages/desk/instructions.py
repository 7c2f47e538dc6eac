"""The desk's instructions: what raters read and agree to, every version of it, and writing the next one.

A text is shown as raters will see it before it can be saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
from orchestrator.web.pages.shell import go_to, text_of


@dataclass(frozen=True)
class Version:
    """A version in the list: what it says, how many agreed to it, and where it stands."""

    told: Instructions
    agreed: int
    state: str


@dataclass(frozen=True)
class Versions:
    """Every version of what is told about a question, the current one first."""

    question: Question
    prompt: str
    rows: list[Version]

    @property
    def now(self) -> Instructions:
        """What raters read now."""
        return self.rows[0].told


@dataclass(frozen=True)
class Writing:
    """The form of the next version: what it follows, and what is written so far."""

    now: Instructions
    agreed: int
    """How many agreed to `now`."""
    text: str
    whole: str
    draft: Instructions | None = None
    """What was written, as raters would see it."""
    problem: str | None = None

    def values(self) -> Mapping[str, object]:
        """What the form's template shows."""
        longest = {"longest_text": instruction_versions.LONGEST_TEXT, "longest_page": instruction_versions.LONGEST_PAGE}
        return {**vars(self), **longest, "prompt": PROMPTS[self.now.question]}


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

        def work(session: Session) -> Mapping[str, object]:
            return {"questions": [_versions(session, question) for question in PROMPTS]}

        return desk.show(request, "instructions.html", work)


def _versions(session: Session, question: Question) -> Versions:
    *written, shipped = instruction_versions.versions(session, question)
    rows = [_row(session, told, "past") for told in written] + [_row(session, shipped, "past")]
    # The desk's first followed what was shipped then; a shipped one that does not precede it came later.
    if written and shipped.number >= written[-1].number:
        rows[-1] = _row(session, shipped, "shipped since, not in use")
    rows[0] = replace(rows[0], state="what raters read now")
    return Versions(question, PROMPTS[question], rows)


def _row(session: Session, told: Instructions, state: str) -> Version:
    return Version(told, instruction_versions.num_agreed(session, told.version), state)


def _add_reading(router: APIRouter, desk: Desk) -> None:
    @router.get("/instructions/{question}/{key}")
    def read(question: str, key: str, request: Request) -> HTMLResponse:
        """One version, as raters see it."""

        def work(session: Session) -> Mapping[str, object]:
            told = _found(session, question, key)
            now = instruction_versions.current(session, told.question)
            return {"told": told, "now": now, "agreed": instruction_versions.num_agreed(session, told.version)}

        return desk.show(request, "instructions_read.html", work)

    @router.get("/instructions/{question}/{key}/edit")
    def edit(question: str, key: str, request: Request) -> HTMLResponse:
        """Write the next version, beginning from this one."""

        def work(session: Session) -> Mapping[str, object]:
            told = _found(session, question, key)
            now = instruction_versions.current(session, told.question)
            return _form(session, now, told.text, told.page).values()

        return desk.show(request, "instructions_edit.html", work)


def _add_preview(router: APIRouter, desk: Desk) -> None:
    @router.post("/instructions/{question}/preview")
    async def preview(question: str, request: Request) -> Response:
        """What was written, as raters would see it; nothing is saved."""

        def work(session: Session, form: FormData, actor: Actor) -> tuple[Actor, Writing]:
            now = instruction_versions.current(session, _known(question))
            text, whole = text_of(form, "text"), text_of(form, "whole")
            written = _form(session, now, text, whole)
            try:
                draft = instruction_versions.draft(now, text_of(form, "began_from"), text, whole)
                return actor, replace(written, draft=draft)
            except InstructionsError as error:
                return actor, replace(written, problem=str(error))

        return _shown(desk, request, *await desk.act_as(request, work))


def _add_saving(router: APIRouter, desk: Desk) -> None:
    @router.post("/instructions/{question}")
    async def save(question: str, request: Request) -> Response:
        """Make what was looked at the next version; of two who save at once one is told, and keeps the text."""

        def work(session: Session, form: FormData, actor: Actor) -> tuple[Actor, Writing] | None:
            text, whole = text_of(form, "text"), text_of(form, "whole")
            try:
                saved = instruction_versions.save(
                    session, _known(question), text_of(form, "began_from"), text, whole, by=actor.name
                )
            except InstructionsError as error:
                now = instruction_versions.current(session, _known(question))
                return actor, replace(_form(session, now, text, whole), problem=str(error))
            record_act(session, actor, "write_instructions", f"instructions {saved.version}")
            return None

        problem = await desk.act_as(request, work)
        return go_to("/desk/instructions") if problem is None else _shown(desk, request, *problem)


def _form(session: Session, now: Instructions, text: str, whole: str) -> Writing:
    return Writing(now, instruction_versions.num_agreed(session, now.version), text, whole)


def _shown(desk: Desk, request: Request, actor: Actor, written: Writing) -> HTMLResponse:
    status = 200 if written.problem is None else 422
    values = {"who": actor.name, **written.values()}
    return desk.page(request, "instructions_edit.html", values, status=status)


def _known(question: str) -> Question:
    if question not in PROMPTS:
        raise ApiError(404, "not_found", f"Nobody is asked what is {question}; /desk/instructions has all questions.")
    return question


def _found(session: Session, question: str, key: str) -> Instructions:
    try:
        return instruction_versions.version_of(session, _known(question), key)
    except InstructionsError as error:
        raise ApiError(404, "not_found", str(error)) from None
