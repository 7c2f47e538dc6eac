"""What both services share: one JSON shape for errors, a cap on request bodies, and the uvicorn settings.

Every error is `{"error": {"message", "type", "param", "code"}}`, the shape that OpenAI clients read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Protocol

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import ApiError
from orchestrator.http_shared.addresses import bound, in_url
from orchestrator.http_shared.model_answers import well_formed


def error_body(status: int, code: str, message: str) -> dict[str, dict[str, str | None]]:
    """The JSON body of an error. The message names what it is about, so that `param` need not."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    # What a request held, half a character perhaps, may stand in the message.
    return {"error": {"message": well_formed(message), "type": kind, "param": None, "code": code}}


class Answer(Protocol):
    """How an error is told."""

    def __call__(
        self, request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The response for an error."""


def json_answer(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as JSON, for programs."""
    return JSONResponse(error_body(status, code, message), status, headers)


def add_error_handlers(app: FastAPI, answer: Answer = json_answer) -> None:
    """Give every error of the application one shape; unforeseen ones are logged and answered 500."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> Response:
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
        return answer(request, error.status, error.code, error.message, headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        problems = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"] if part != "body")
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message}" if where else message)
        return answer(request, 422, "invalid_request", "; ".join(problems))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return answer(request, error.status_code, code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> Response:
        # Starlette raises it again after this answer, so the log gets its traceback.
        message = f"{request.method} {request.url.path} failed; the server's log says why."
        return answer(request, 500, "internal_error", message)


_DRAINED_BYTES = 50_000_000


class BodyLimit:
    """Refuses bodies over `max_bytes` with 413, by the declared length or while they arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on unless its body is too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self.max_bytes:
                await self._drain(receive, int(value))
                await self._refuse(send)
                return
        received = 0
        started = False

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.max_bytes:
                    raise _TooLarge
            return message

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted_receive, watched_send)
        except _TooLarge:
            if started:
                raise
            await self._refuse(send)

    async def _drain(self, receive: Receive, declared: int) -> None:
        """Read and forget a body that is not absurdly large: a client still sending would miss the answer."""
        more = declared <= _DRAINED_BYTES
        while more:
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)

    async def _refuse(self, send: Send) -> None:
        message = f"The request body is larger than the {self.max_bytes} bytes allowed here. Send less."
        body = json.dumps(error_body(413, "body_too_large", message)).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _TooLarge(BaseException):
    """Ends the reading of a body. Not an Exception: FastAPI would turn that into a 400 of its own."""


def serve(app: FastAPI, host: str, port: int, name: str) -> None:
    """Run the application until SIGINT or SIGTERM; prints its address once it answers.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # It would write a line for every reply.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    listener = bound(host, port)
    # Backlog: hundreds of raters may connect in the same instant.
    listener.listen(2048)
    print(f"{name} listens on http://{in_url(host)}:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=75, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listener])
