"""A rater's first page: the tasks, and the dialogues that are open."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from orchestrator.conversations import dialogues, written_replies
from orchestrator.conversations.schemas import BeginDialogue
from orchestrator.errors import ApiError
from orchestrator.people import access
from orchestrator.people.access import SignedIn
from orchestrator.people.instruction_versions import Instructions, current
from orchestrator.people.notices import current_announcements
from orchestrator.people.queues import EVERYTHING, Offer, offers_at_home
from orchestrator.people.tasks import PROMPTS, TASKS, Question, TaskName, warns_about
from orchestrator.store.deployments import live_deployment
from orchestrator.web import page_views
from orchestrator.web.pages.rater.shared import RaterPages, key_of
from orchestrator.web.pages.shell import (
    go_to,
    page,
    page_of,
)


def add_home(router: APIRouter, shared: RaterPages) -> None:
    @router.get("/")
    def home(request: Request) -> HTMLResponse:
        """What there is to do, what is open, what was done."""

        def work(session: Session, me: SignedIn) -> Mapping[str, object]:
            offered: list[Offer] = offers_at_home(session, me.rater)
            return {
                "announcements": current_announcements(session),
                "work": page_views.work_of(session, me.rater),
                "visit": access.visit_state(session, me.rater.id),
                "live": live_deployment(session) is not None,
                "num_to_write": written_replies.num_waiting(session, me.rater),
                "offers": [(task, question, TASKS[task]) for task, question in offered],
            }

        me, shown = shared.for_me(request, work)
        return page_of("home.html", {"tasks": TASKS, "prompts": PROMPTS, **shown}, me=me)


def add_tasks(router: APIRouter, shared: RaterPages) -> None:
    @router.get("/tasks/{task}/{question}")
    def instructions(task: TaskName, question: Question, request: Request) -> HTMLResponse:
        """The whole instructions; read before the first dialogue, reachable ever after."""
        _known(task, question)

        def work(session: Session, me: SignedIn) -> tuple[Instructions, bool]:
            told = current(session, question)
            return told, access.has_consented(session, me.rater.id, told.version)

        me, (told, agreed) = shared.for_me(request, work)
        return page(
            "instructions.html",
            me=me,
            task=TASKS[task],
            action=f"/tasks/{task}/{question}",
            told=told,
            warns=warns_about(task, question),
            agreed=agreed,
            key=secrets.token_urlsafe(12),
        )

    @router.post("/tasks/{task}/{question}")
    async def begin(task: TaskName, question: Question, request: Request) -> Response:
        """Begin a dialogue; the first time the instructions are shown in between."""
        _known(task, question)

        def work(session: Session, me: SignedIn, form: FormData) -> int | None:
            version = current(session, question).version
            if form.get("agree") == version:
                access.consent(session, me.rater.id, version)
            elif not access.has_consented(session, me.rater.id, version):
                return None
            chosen = question if task == "model_comparison" else None
            request = BeginDialogue(
                task=task,
                question=chosen,  # type: ignore[arg-type]
                client_key=key_of(form),
            )
            return dialogues.begin_dialogue(session, me.rater, request)[0]

        _, dialogue_id = await shared.form(request, work)
        return go_to(f"/tasks/{task}/{question}" if dialogue_id is None else f"/dialogues/{dialogue_id}")

    def _known(task: TaskName, question: Question) -> None:
        if (task, question) not in EVERYTHING:
            raise ApiError(404, "not_found", f"Task {task} does not ask what is {question}.")
