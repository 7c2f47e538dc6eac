"""A model of others behind an OpenAI-compatible address, which says what it is told to and remembers what it was asked.

A stand-in: what such models get wrong has to be said byte by byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

Answer = Callable[[dict[str, Any]], Response]


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with half surrogates escaped, as those write it who have them."""
    return Response(json.dumps(value), status, headers, media_type="application/json")


def completion(content: Any, finish: str | None = "stop", **message: Any) -> Response:
    """A whole chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    return as_json({"id": "c", "model": "what-it-calls-itself", "choices": [choice], "usage": usage})


def refused(status: int, message: str, **error: Any) -> Response:
    """A refusal in OpenAI's shape."""
    return as_json({"error": {"message": message, "type": "invalid_request_error", **error}}, status)


def event_of(delta: dict[str, Any], finish: str | None = None, *, escaped: bool = False) -> str:
    """The JSON of a chunk."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps({"id": "c", "choices": [choice]}, ensure_ascii=escaped)


def stream(events: Sequence[str], *, before: str = "data: ", end: str = "\n") -> Response:
    """The events as a stream, with lines that begin and end so."""
    text = "".join(f"{before}{event}{end}{end}" for event in events)
    return Response(text.encode(), media_type="text/event-stream")


@dataclass
class OutsideModel:
    """The address, and the models that it lists."""

    answer: Answer
    names: list[str] = field(default_factory=lambda: ["big-1"])
    asked: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> JSONResponse:
            return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]})

        @app.post("/v1/chat/completions", response_model=None)
        async def complete(request: Request) -> Response:
            self.asked.append(await request.json())
            return self.answer(self.asked[-1])

        return app
