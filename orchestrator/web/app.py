"""The feedback app's routes: dialogues, messages, pairs and comparisons for raters with a token.

Handlers that only touch the database are plain functions in a sized thread pool; those that wait for replies are
async and hold no thread meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, FastAPI, Header, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from db.session import transaction
from orchestrator.conversations import dialogues, pairs, schemas
from orchestrator.errors import ApiError
from orchestrator.http_shared.asgi import BodyLimit, add_error_handlers
from orchestrator.http_shared.metrics import CountRequests, Metrics
from orchestrator.people.instruction_versions import Instructions, current
from orchestrator.people.raters import RaterIdentity
from orchestrator.people.tasks import Question
from orchestrator.store.live import live_now
from orchestrator.web.desk_access import is_admin_token
from orchestrator.web.pages.desk.routes import desk_pages
from orchestrator.web.pages.desk.shared import DeskSignInFirst, desk_sign_in_first
from orchestrator.web.pages.rater.dialogue import as_it_is_now
from orchestrator.web.pages.rater.routes import pages
from orchestrator.web.pages.rater.shared import RaterPages, SignInFirst, StaleForm, sign_in_first
from orchestrator.web.pages.shell import Id, error_answer
from orchestrator.web.pair_sampling import PairSampling
from orchestrator.web.service import Feedback, FeedbackConfig, server_sent_events


async def bearer_token(authorization: Annotated[str | None, Header()] = None) -> str:
    """The rater's token from `Authorization: Bearer <token>`. Async, so that reading a header costs no thread."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise ApiError(401, "no_token", "Send the header 'Authorization: Bearer <rater token>'.")
    return token.strip()


Token = Annotated[str, Depends(bearer_token)]


def create_app(config: FeedbackConfig) -> FastAPI:
    """The feedback app over one database and one policy server."""
    feedback = Feedback(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = config.threads
        yield
        await feedback.close()

    # The pages of /docs would load scripts from another host; the OpenAPI document itself is served.
    app = FastAPI(title="Feedback app", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    metrics = Metrics("feedback_app")
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(CountRequests, metrics=metrics)
    add_error_handlers(app, error_answer)

    @app.exception_handler(InterfaceError)
    @app.exception_handler(OperationalError)
    async def _database_away(request: Request, error: DBAPIError) -> Response:
        message = "The database does not answer. Send the same request again in a moment; nothing is counted twice."
        return error_answer(request, 503, "database_unavailable", message, {"Retry-After": "2"})

    @app.exception_handler(SignInFirst)
    async def _sign_in_first(request: Request, error: SignInFirst) -> Response:
        return sign_in_first(request)

    @app.exception_handler(StaleForm)
    async def _stale_form(request: Request, stale: StaleForm) -> Response:
        return await run_in_threadpool(as_it_is_now, RaterPages(feedback), request, stale.error)

    @app.exception_handler(DeskSignInFirst)
    async def _desk_sign_in_first(request: Request, error: DeskSignInFirst) -> Response:
        return desk_sign_in_first(request)

    _add_health(app, feedback)
    _add_metrics(app, config, metrics)
    _add_dialogues(app, feedback)
    _add_pairs(app, feedback)
    app.include_router(pages(feedback))
    app.include_router(desk_pages(feedback))
    return app


def _add_health(app: FastAPI, feedback: Feedback) -> None:
    @app.get("/health")
    def health(authorization: Annotated[str | None, Header()] = None) -> dict[str, object]:
        """Whether the app and its database work, and whether a policy is live; for the admin token, which and why."""
        with transaction(feedback.engine) as session:
            session.execute(text("select 1"))
            live = live_now(session)
        told: dict[str, object] = {"status": "ok", "policy_live": live is not None}
        if live is None:
            told["message"] = "no policy is live"
        # Raters reach this app; who decided what, and who answers them, is not theirs to know.
        token = (authorization or "").partition(" ")[2].strip()
        if not is_admin_token(token, feedback.config.admin_token):
            return told
        outside = {name: asdict(one.told()) for name, one in sorted(feedback.outside.standings.items())}
        return told | ({} if live is None else {"deployment": live.to_json()}) | {"contestants": outside}


def _add_metrics(app: FastAPI, config: FeedbackConfig, metrics: Metrics) -> None:
    @app.get("/metrics", include_in_schema=False)
    async def prometheus(token: Token) -> Response:
        """Prometheus metrics, for whoever has the admin token: raters reach this app, and it is not theirs to know."""
        if not is_admin_token(token, config.admin_token):
            raise ApiError(403, "not_admin", "Metrics need the admin token: Authorization: Bearer <admin token>.")
        return metrics.answer()


def _add_dialogues(app: FastAPI, feedback: Feedback) -> None:
    @app.post("/api/dialogues", status_code=201)
    def begin_dialogue(request: schemas.BeginDialogue, token: Token, response: Response) -> schemas.DialogueBegun:
        """Begin a dialogue of one kind of task; 200 where the same client_key was here before."""

        def begun(session: Session, rater: RaterIdentity) -> tuple[int, Question, bool, Instructions]:
            dialogue_id, question, new = dialogues.begin_dialogue(session, rater, request)
            return dialogue_id, question, new, current(session, question)

        dialogue_id, question, new, instructions = feedback.as_rater(token, begun)
        response.status_code = 201 if new else 200
        return schemas.DialogueBegun(
            dialogue_id=dialogue_id,
            task=request.task,
            question=question,
            instructions=schemas.InstructionsOut(version=instructions.version, text=instructions.text),
        )

    @app.post("/api/dialogues/{dialogue_id}/messages", status_code=201)
    def add_message(
        dialogue_id: Id, request: schemas.AddMessage, token: Token, response: Response
    ) -> schemas.MessageAdded:
        """Write a message; 200 where the same client_key was here before."""
        message_id, new = feedback.as_rater(
            token, lambda session, rater: dialogues.add_message(session, rater, dialogue_id, request)
        )
        response.status_code = 201 if new else 200
        return schemas.MessageAdded(message_id=message_id)

    @app.post("/api/dialogues/{dialogue_id}/end")
    def end_dialogue(dialogue_id: Id, token: Token) -> schemas.DialogueEnded:
        """End a dialogue; ending it again changes nothing."""
        ended_at = feedback.as_rater(token, lambda session, rater: dialogues.end_dialogue(session, rater, dialogue_id))
        return schemas.DialogueEnded(dialogue_id=dialogue_id, ended_at=ended_at)


def _add_pairs(app: FastAPI, feedback: Feedback) -> None:
    @app.post("/api/messages/{message_id}/pairs", status_code=201)
    async def ask_for_pair(
        message_id: Id, request: schemas.AskForPair, token: Token, response: Response
    ) -> schemas.PairOut:
        """Ask for two replies; 200 where the same client_key was here before."""
        pair, new = await feedback.as_rater_async(
            token,
            lambda session, rater: pairs.ask_for_pair(session, rater, message_id, request, feedback.sampler.resting()),
        )
        response.status_code = 201 if new else 200
        if pair.complete:
            return pair.shown()
        sampling = feedback.sampler.start(pair, stream=not request.wait)
        if not request.wait:
            return sampling.shown(pair)
        await sampling.finished()
        return sampling.shown(pair)

    @app.get("/api/pairs/{pair_id}")
    async def read_pair(pair_id: Id, token: Token) -> schemas.PairOut:
        """The pair as it stands; a pair whose sampling was interrupted is taken up again."""
        pair = await feedback.as_rater_async(token, lambda session, rater: pairs.read_pair(session, rater, pair_id))
        if pair.complete:
            return pair.shown()
        return feedback.sampler.start(pair, stream=True).shown(pair)

    @app.get("/api/pairs/{pair_id}/stream")
    async def stream_pair(pair_id: Id, token: Token) -> StreamingResponse:
        """Both replies as they grow, as server-sent events."""
        pair = await feedback.as_rater_async(token, lambda session, rater: pairs.read_pair(session, rater, pair_id))
        sampling = PairSampling(pair) if pair.complete else feedback.sampler.start(pair, stream=True)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(server_sent_events(sampling), media_type="text/event-stream", headers=headers)

    @app.post("/api/pairs/{pair_id}/comparison", status_code=201)
    def compare(pair_id: Id, request: schemas.Compare, token: Token, response: Response) -> schemas.Compared:
        """Choose; 200 where the same choice was recorded before, 409 where another was."""
        compared, new = feedback.as_rater(token, lambda session, rater: pairs.compare(session, rater, pair_id, request))
        response.status_code = 201 if new else 200
        return compared
