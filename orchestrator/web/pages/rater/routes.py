"""The rater's pages: come in, read the instructions, write, read two replies, choose, go on.

Every form names what it is about (a client key, a pair), so that a double click, a retry after a lost connection and a
second tab are the same act. After a form the browser is sent to a page: reload and back button send nothing again.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from orchestrator.conversations import dialogues, edits, pairs, written_replies
from orchestrator.conversations.schemas import MAX_MESSAGE_CHARS, AddMessage, AskForPair, BeginDialogue, Compare
from orchestrator.http_shared.asgi import ApiError
from orchestrator.people import access
from orchestrator.people.access import SignedIn
from orchestrator.people.notices import current_announcements
from orchestrator.people.queues import EVERYTHING, Offer, offers, offers_at_home
from orchestrator.people.raters import rater_by_token
from orchestrator.people.tasks import INSTRUCTIONS, PROMPTS, TASKS, Question, Side, TaskName, warns_about
from orchestrator.store.deployments import live_deployment
from orchestrator.web import page_views
from orchestrator.web.pages.markdown import render_markdown
from orchestrator.web.pages.rater.problems import add_problems
from orchestrator.web.pages.rater.shared import RaterPages, key_of, written
from orchestrator.web.pages.rater.writing import add_writing
from orchestrator.web.pages.shell import (
    SESSION_COOKIE,
    PageRoute,
    address_of,
    check_same_site,
    forget_session,
    go_to,
    page,
    set_session,
    text_of,
)
from orchestrator.web.pair_sampling import PairSampling
from orchestrator.web.service import Feedback, server_sent_events

Id = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]

STATIC = Path(__file__).parent.parent / "static"
# A name that is not here is not served.
STATIC_TYPES = {"app.css": "text/css", "rater.js": "text/javascript", "icon.svg": "image/svg+xml"}


def pages(feedback: Feedback) -> APIRouter:
    """The routes of the pages, beside the JSON API."""
    shared = RaterPages(feedback)
    router = APIRouter(include_in_schema=False, route_class=PageRoute)
    _add_entrance(router, shared)
    _add_platforms(router, shared)
    _add_home(router, shared)
    _add_tasks(router, shared)
    _add_dialogue(router, shared)
    _add_pair(router, shared)
    add_problems(router, shared)
    add_writing(router, shared)
    return router


def _add_entrance(router: APIRouter, shared: RaterPages) -> None:
    feedback = shared.feedback

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        """Style sheet, script, icon."""
        if name not in STATIC_TYPES:
            raise ApiError(404, "not_found", f"There is no file {name!r} here.")
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response((STATIC / name).read_bytes(), media_type=STATIC_TYPES[name], headers=headers)

    @router.get("/join/{token}")
    def invited(token: str, request: Request) -> HTMLResponse:
        """What an invitation link shows; joining takes a click, so that a link preview joins nobody."""
        feedback.transaction(lambda session: access.open_invitation(session, token))
        return page("join.html", me=shared.me(request), token=token)

    @router.post("/join/{token}")
    def join(token: str, request: Request) -> Response:
        """Become a rater by an invitation."""
        check_same_site(request)

        def work(session: Session) -> str:
            return access.begin_session(session, access.join(session, token))

        response = go_to("/")
        set_session(request, response, feedback.transaction(work))
        return response

    @router.get("/sign-in")
    def ask_sign_in(request: Request) -> HTMLResponse:
        """Sign in with the token that the operator gave."""
        return page("sign_in.html", me=shared.me(request), problem=None)

    @router.post("/sign-in")
    def sign_in(request: Request, token: Annotated[str, Form(max_length=500)]) -> Response:
        """Sign in; every session has a new cookie."""
        check_same_site(request)
        feedback.admit_sign_in(address_of(request))

        def work(session: Session) -> str | None:
            rater = rater_by_token(session, token.strip())
            if rater is None or rater.banned:
                return None
            return access.begin_session(session, rater.id)

        cookie = feedback.transaction(work)
        if cookie is None:
            problem = "This token belongs to no rater who can take part. Check it, or ask the operator for a new one."
            return page("sign_in.html", status=401, problem=problem)
        response = go_to("/")
        set_session(request, response, cookie)
        return response

    @router.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        """End this browser's session."""
        cookie = request.cookies.get(SESSION_COOKIE, "")
        await shared.form(request, lambda session, me, form: access.end_session(session, cookie))
        response = go_to("/sign-in")
        forget_session(response)
        return response


def _add_platforms(router: APIRouter, shared: RaterPages) -> None:
    feedback = shared.feedback
    names = {"prolific": ("STUDY_ID", "PROLIFIC_PID", "SESSION_ID"), "mturk": ("hitId", "workerId", "assignmentId")}

    @router.get("/enter/{platform}")
    def arrive(platform: str, request: Request) -> HTMLResponse:
        """Where Prolific and MTurk send people; entering takes a click, so that a preview enters nobody."""
        return page("enter.html", me=None, platform=platform, ids=_ids(platform, request))

    @router.post("/enter/{platform}")
    def enter(platform: str, request: Request) -> Response:
        """Begin the visit, or go on with it."""
        check_same_site(request)
        ids = _ids(platform, request)
        study, person, submission = (ids[name] for name in names[platform])

        def work(session: Session) -> str:
            return access.begin_session(session, access.enter(session, platform, study, person, submission))

        response = go_to("/")
        set_session(request, response, feedback.transaction(work))
        return response

    def _ids(platform: str, request: Request) -> dict[str, str]:
        if platform not in names:
            raise ApiError(404, "unknown_platform", f"Platform {platform!r} is unknown; expected prolific or mturk.")
        ids = {name: request.query_params.get(name, "") for name in names[platform]}
        unusable = [name for name, value in ids.items() if not (0 < len(value) <= 100 and value.isprintable())]
        if unusable or ids.get("assignmentId") == "ASSIGNMENT_ID_NOT_AVAILABLE":
            missing = ", ".join(unusable) or "an accepted assignment"
            raise ApiError(422, "incomplete_link", f"This link lacks {missing}. Open it from the platform again.")
        return ids


def _add_home(router: APIRouter, shared: RaterPages) -> None:
    @router.get("/")
    def home(request: Request) -> HTMLResponse:
        """What there is to do, what is open, what was done."""

        def work(session: Session, me: SignedIn) -> dict[str, Any]:
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
        return page("home.html", me=me, tasks=TASKS, prompts=PROMPTS, **shown)


def _add_tasks(router: APIRouter, shared: RaterPages) -> None:
    @router.get("/tasks/{task}/{question}")
    def instructions(task: TaskName, question: Question, request: Request) -> HTMLResponse:
        """The whole instructions; read before the first dialogue, reachable ever after."""
        _known(task, question)
        told = INSTRUCTIONS[question]
        me, agreed = shared.for_me(
            request, lambda session, me: access.has_consented(session, me.rater.id, told.version)
        )
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
        version = INSTRUCTIONS[question].version

        def work(session: Session, me: SignedIn, form: FormData) -> int | None:
            if form.get("agree") == version:
                access.consent(session, me.rater.id, version)
            elif not access.has_consented(session, me.rater.id, version):
                return None
            asked = question if task == "model_comparison" else None
            request = BeginDialogue(
                task=task,
                question=asked,  # type: ignore[arg-type]
                client_key=key_of(form),
            )
            return dialogues.begin_dialogue(session, me.rater, request)[0]

        _, dialogue_id = await shared.form(request, work)
        return go_to(f"/tasks/{task}/{question}" if dialogue_id is None else f"/dialogues/{dialogue_id}")

    def _known(task: TaskName, question: Question) -> None:
        if (task, question) not in EVERYTHING:
            raise ApiError(404, "not_found", f"Task {task} does not ask what is {question}.")


def _add_dialogue(router: APIRouter, shared: RaterPages) -> None:
    feedback = shared.feedback

    @router.get("/dialogues/{dialogue_id}")
    async def dialogue(dialogue_id: Id, request: Request) -> HTMLResponse:
        """The dialogue as it stands; an interrupted pair is taken up again."""
        me, shown = await run_in_threadpool(
            shared.for_me, request, lambda session, me: page_views.dialogue_view(session, me.rater, dialogue_id)
        )
        sampling = None
        if shown.pair is not None and not shown.pair.complete:
            sampling = feedback.sampler.start(shown.pair, stream=True)
        return _dialogue_page(me, shown, sampling)

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
        await _ask(me, message_id, key)
        return go_to(f"/dialogues/{dialogue_id}")

    @router.post("/dialogues/{dialogue_id}/pairs")
    async def ask_again(dialogue_id: Id, request: Request) -> Response:
        """Ask for replies to a message that has none, because asking failed."""

        def leaf(session: Session, me: SignedIn, form: FormData) -> tuple[int | None, str]:
            shown = page_views.dialogue_view(session, me.rater, dialogue_id)
            return (shown.leaf_id if shown.awaits_pair else None), key_of(form)

        me, (message_id, key) = await shared.form(request, leaf)
        if message_id is not None:
            await _ask(me, message_id, key)
        return go_to(f"/dialogues/{dialogue_id}")

    async def _ask(me: SignedIn, message_id: int, key: str) -> None:
        asked = AskForPair(client_key=f"pair {key}")
        pair, _ = await feedback.transaction_async(
            lambda session: pairs.ask_for_pair(session, me.rater, message_id, asked)
        )
        if not pair.complete:
            feedback.sampler.start(pair, stream=True)

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
            if not access.has_consented(session, me.rater.id, INSTRUCTIONS["helpful"].version):
                return None
            begun = BeginDialogue(task="helpful", client_key=key_of(form))
            return dialogues.begin_dialogue(session, me.rater, begun)[0]

        _, begun = await shared.form(request, work)
        if begun == 0:
            return go_to("/")
        return go_to("/tasks/helpful/helpful" if begun is None else f"/dialogues/{begun}")


def _add_pair(router: APIRouter, shared: RaterPages) -> None:
    feedback = shared.feedback

    @router.get("/pairs/{pair_id}/stream")
    async def stream(pair_id: Id, request: Request) -> StreamingResponse:
        """Both replies as they grow, as server-sent events."""
        pair = await _pair(request, pair_id)
        sampling = PairSampling(pair) if pair.complete else feedback.sampler.start(pair, stream=True)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(server_sent_events(sampling), media_type="text/event-stream", headers=headers)

    @router.get("/pairs/{pair_id}/replies")
    async def replies(pair_id: Id, request: Request) -> JSONResponse:
        """Both complete replies as safe HTML."""
        pair = await _pair(request, pair_id)
        if not pair.complete:
            raise ApiError(409, "pair_incomplete", f"Pair {pair_id} is not complete yet.")
        text = {candidate.side: candidate.text or "" for candidate in pair.candidates}
        html = {side: render_markdown(reply) for side, reply in text.items()}
        return JSONResponse({"text": text, "html": html}, headers={"Cache-Control": "no-store"})

    @router.post("/pairs/{pair_id}/comparison")
    async def compare(pair_id: Id, request: Request) -> Response:
        """Choose. A choice is one field: side and strength, or that none can be told."""

        def work(session: Session, me: SignedIn, form: FormData) -> int:
            pair = pairs.read_pair(session, me.rater, pair_id)
            pairs.compare(session, me.rater, pair_id, _choice(form))
            access.visit_state(session, me.rater.id)
            return pair.dialogue_id

        _, dialogue_id = await shared.form(request, work)
        return go_to(f"/dialogues/{dialogue_id}")

    @router.post("/pairs/{pair_id}/edit")
    async def edit(pair_id: Id, request: Request) -> Response:
        """Write a better reply in place of choosing."""

        def work(session: Session, me: SignedIn, form: FormData) -> int:
            pair = pairs.read_pair(session, me.rater, pair_id)
            side = text_of(form, "side")
            if side not in _SIDE:
                raise ApiError(422, "unknown_side", f"Side {side!r} is unknown; expected a or b.")
            edits.edit_reply(session, me.rater, pair_id, _SIDE[side], written(text_of(form, "content")))
            access.visit_state(session, me.rater.id)
            return pair.dialogue_id

        _, dialogue_id = await shared.form(request, work)
        return go_to(f"/dialogues/{dialogue_id}")

    async def _pair(request: Request, pair_id: int) -> pairs.PairRow:
        _, pair = await run_in_threadpool(
            shared.for_me, request, lambda session, me: pairs.read_pair(session, me.rater, pair_id)
        )
        return pair


def _dialogue_page(me: SignedIn, shown: page_views.DialogueView, sampling: PairSampling | None) -> HTMLResponse:
    pair = None
    if shown.pair is not None:
        pair = shown.pair.shown() if sampling is None else sampling.shown(shown.pair)
    return page(
        "dialogue.html",
        me=me,
        dialogue=shown,
        pair=pair,
        complete=shown.pair is not None and shown.pair.complete,
        task=TASKS[shown.task],
        told=INSTRUCTIONS[shown.question],
        prompt=PROMPTS[shown.question],
        warns=warns_about(shown.task, shown.question),
        key=secrets.token_urlsafe(12),
        max_chars=MAX_MESSAGE_CHARS,
    )


_SIDE: dict[str, Side] = {"a": "a", "b": "b"}


def _choice(form: FormData) -> Compare:
    """`a4` (side a, strong) to `a1`, `b1` to `b4`, or that none can be told; and how long the rater looked."""
    chosen = text_of(form, "choice")
    duration = text_of(form, "duration_ms")
    duration_ms = min(int(duration), 7 * 24 * 3600 * 1000) if duration.isdecimal() and len(duration) < 12 else None
    if text_of(form, "none"):
        return Compare(side="none", reason="cant_tell", duration_ms=duration_ms)
    if len(chosen) != 2 or chosen[0] not in _SIDE or chosen[1] not in "1234":
        raise ApiError(422, "no_choice", "Choose a reply and how sure you are, or say that you can't tell.")
    return Compare(side=_SIDE[chosen[0]], strength=int(chosen[1]), duration_ms=duration_ms)
