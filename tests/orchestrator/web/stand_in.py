"""A language model behind the policy server's address, with known replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse


def reply_of(digest: str, seed: int, content: str) -> str:
    """What the stand-in says: a function of weights, seed and prompt, as the contract of sampling wants it."""
    return f"{digest[7:11]} {seed % 1000} says {content[::-1]}"


@dataclass
class StandIn:
    """A language model behind the policy server's address: known replies, which can be held back or break off."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    break_offs: int = 0
    """So many of the next streams break off after their first word."""
    refusals: list[tuple[int, str]] = field(default_factory=list)
    """Status and code of the next answers."""
    alike: bool = False
    """Whether it says the same whatever the seed."""

    admin_calls: list[str] = field(default_factory=list)
    admin_refusals: bool = False
    """Whether no snapshot can be loaded."""

    def app(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self._loop, self._open = asyncio.get_running_loop(), asyncio.Event()
            self._open.set()
            yield
            self._open.set()

        app = FastAPI(lifespan=lifespan)

        @app.post("/admin/{action}", response_model=None)
        async def admin(action: str, request: Request) -> JSONResponse:
            if self.admin_refusals:
                return JSONResponse({"error": {"message": "broken weights", "code": "snapshot_unusable"}}, 503)
            self.admin_calls.append(action)
            return JSONResponse({"live": None})

        @app.post("/v1/chat/completions", response_model=None)
        async def complete(request: Request) -> JSONResponse | StreamingResponse:
            body = await request.json()
            self.asked.append(body)
            if self.refusals:
                status, code = self.refusals.pop(0)
                return JSONResponse({"error": {"message": f"about {body['model']}", "code": code}}, status)
            texts = [
                reply_of(body["model"], 0 if self.alike else body["seed"] + i, body["messages"][-1]["content"])
                for i in range(body["n"])
            ]
            head = {"system_fingerprint": body["model"]}
            if body["stream"]:
                return StreamingResponse(self._chunks(head, texts), media_type="text/event-stream")
            await self._open.wait()
            told = {}
            if "best_of" in body:
                told = {"best_of": {"k": body["best_of"], "preference_model": body["preference_model"], "score": 0.5}}
            choices = [
                {
                    "index": i,
                    "message": {"content": text},
                    "finish_reason": "stop",
                    "reply_tokens": len(text.split()),
                    **told,
                }
                for i, text in enumerate(texts)
            ]
            return JSONResponse({**head, "choices": choices})

        return app

    def hold(self) -> None:
        """Let replies stop after their first word."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def release(self) -> None:
        """Let them go on."""
        self._loop.call_soon_threadsafe(self._open.set)

    async def _chunks(self, head: dict[str, Any], texts: list[str]) -> AsyncIterator[str]:
        def event(index: int, content: str, **last: Any) -> str:
            choice = {"index": index, "delta": {"content": content}, "finish_reason": None, **last}
            return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

        for i, text in enumerate(texts):
            yield event(i, text.split(" ", 1)[0])
        if self.break_offs:
            self.break_offs -= 1
            return
        await self._open.wait()
        for i, text in enumerate(texts):
            yield event(i, " " + text.split(" ", 1)[1], finish_reason="length", reply_tokens=len(text.split()))
        yield "data: [DONE]\n\n"
