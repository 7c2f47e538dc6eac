"""The page of a dialogue: write, read two replies, go on."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from orchestrator.conversations import dialogues, pairs
from orchestrator.conversations.schemas import MAX_MESSAGE_CHARS, AddMessage, AskForPair, BeginDialogue
from orchestrator.errors import ApiError
from orchestrator.people import access
from orchestrator.people.access import SignedIn
from orchestrator.people.instruction_versions import Instructions, current
from orchestrator.people.queues import offers
from orchestrator.people.tasks import PROMPTS, TASKS, warns_about
from orchestrator.web import page_views
from orchestrator.web.pages.rater.shared import RaterPages, key_of, written
from orchestrator.web.pages.shell import (
    Id,
    go_to,
    page,
    text_of,
)
from orchestrator.web.pair_sampling import PairSampling


def add_dialogue(router: APIRouter, shared: RaterPages) -> None:
    """The routes of one dialogue."""
    _add_reading(router, shared)
    _add_writing(router, shared)
    _add_asking_again(router, shared)
    _add_ending(router, shared)


def _add_reading(router: APIRouter, shared: RaterPages) -> None:
    @router.get("/dialogues/{dialogue_id}")
    async def dialogue(dialogue_id: Id, request: Request) -> HTMLResponse:
        """The dialogue as it stands; an interrupted pair is taken up again."""

        def work(session: Session, me: SignedIn) -> tuple[page_views.DialogueView, Instructions]:
            shown = page_views.dialogue_view(session, me.rater, dialogue_id)
            return shown, current(session, shown.question)

        me, (shown, told) = await run_in_threadpool(shared.for_me, request, work)
        sampling = None
        if shown.pair is not None and not shown.pair.complete:
            sampling = shared.feedback.sampler.start(shown.pair, stream=True)
        return _dialogue_page(me, shown, told, sampling)


def _add_writing(router: APIRouter, shared: RaterPages) -> None:
    @router.post("/dialogues/{dialogue_id}/messages")
    async def write(dialogue_id: Id, request: Request) -> Response:
        """Write a message and ask for its two replies."""

        def add(session: Session, me: SignedIn, form: FormData) -> tuple[int, str]:
            key = key_of(form)
            parent = text_of(form, "parent_id")
            message = AddMessage(
                content=written(text_of(form, "content")),
                parent_id=int(parent) if parent.isdecimal() else None,
                client_key=key,
            )
            return dialogues.add_message(session, me.rater, dialogue_id, message)[0], key

        me, (message_id, key) = await shared.form(request, add)
        # A transaction of its own: what was written is kept also where no policy is live to answer it.
        await _ask_for_pair(shared, me, message_id, key)
        return go_to(f"/dialogues/{dialogue_id}")


def _add_asking_again(router: APIRouter, shared: RaterPages) -> None:
    @router.post("/dialogues/{dialogue_id}/pairs")
    async def ask_again(dialogue_id: Id, request: Request) -> Response:
        """Ask for replies to a message that has none, because asking failed."""

        def leaf(session: Session, me: SignedIn, form: FormData) -> tuple[int | None, str]:
            shown = page_views.dialogue_view(session, me.rater, dialogue_id)
            return (shown.leaf_id if shown.awaits_pair else None), key_of(form)

        me, (message_id, key) = await shared.form(request, leaf)
        if message_id is not None:
            await _ask_for_pair(shared, me, message_id, key)
        return go_to(f"/dialogues/{dialogue_id}")


async def _ask_for_pair(shared: RaterPages, me: SignedIn, message_id: int, key: str) -> None:
    """Draw the pair that answers a message, and begin to sample its replies."""
    request = AskForPair(client_key=f"pair {key}")
    pair, _ = await shared.feedback.transaction_async(
        lambda session: pairs.ask_for_pair(session, me.rater, message_id, request, shared.feedback.sampler.resting())
    )
    if not pair.complete:
        shared.feedback.sampler.start(pair, stream=True)


def _add_ending(router: APIRouter, shared: RaterPages) -> None:
    @router.post("/dialogues/{dialogue_id}/end")
    async def end(dialogue_id: Id, request: Request) -> Response:
        """End the dialogue."""
        await shared.form(request, lambda session, me, form: dialogues.end_dialogue(session, me.rater, dialogue_id))
        return go_to(f"/dialogues/{dialogue_id}")

    @router.post("/dialogues/{dialogue_id}/leave")
    async def leave(dialogue_id: Id, request: Request) -> Response:
        """End a dialogue that tests the limits, and go over to the helpfulness task: one click."""

        def work(session: Session, me: SignedIn, form: FormData) -> int | None:
            dialogues.end_dialogue(session, me.rater, dialogue_id)
            # Leaving must always work, also where the rater is not offered the other task.
            if ("helpful", "helpful") not in offers(session, me.rater):
                return 0
            if not access.has_consented(session, me.rater.id, current(session, "helpful").version):
                return None
            begun = BeginDialogue(task="helpful", client_key=key_of(form))
            return dialogues.begin_dialogue(session, me.rater, begun)[0]

        _, begun = await shared.form(request, work)
        if begun == 0:
            return go_to("/")
        return go_to("/tasks/helpful/helpful" if begun is None else f"/dialogues/{begun}")


def as_it_is_now(shared: RaterPages, request: Request, error: ApiError) -> HTMLResponse:
    """The dialogue to which a stale form belongs, and what is wrong with the form."""

    def work(session: Session, me: SignedIn) -> tuple[page_views.DialogueView, Instructions]:
        named = request.path_params
        dialogue_id = (
            int(named["dialogue_id"])
            if "dialogue_id" in named
            else pairs.read_pair(session, me.rater, int(named["pair_id"])).dialogue_id
        )
        shown = page_views.dialogue_view(session, me.rater, dialogue_id)
        return shown, current(session, shown.question)

    me, (shown, told) = shared.for_me(request, work)
    return _dialogue_page(me, shown, told, None, error)


def _dialogue_page(
    me: SignedIn,
    shown: page_views.DialogueView,
    told: Instructions,
    sampling: PairSampling | None,
    error: ApiError | None = None,
) -> HTMLResponse:
    pair = None
    if shown.pair is not None:
        pair = shown.pair.shown() if sampling is None else sampling.shown(shown.pair)
    return page(
        "dialogue.html",
        status=200 if error is None else error.status,
        said=None if error is None else error.message,
        me=me,
        dialogue=shown,
        pair=pair,
        complete=shown.pair is not None and shown.pair.complete,
        alike=shown.pair is not None and shown.pair.alike,
        task=TASKS[shown.task],
        told=told,
        prompt=PROMPTS[shown.question],
        warns=warns_about(shown.task, shown.question),
        key=secrets.token_urlsafe(12),
        max_chars=MAX_MESSAGE_CHARS,
    )
