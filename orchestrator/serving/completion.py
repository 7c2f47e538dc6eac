"""One chat completion from request to answer, whole or as server-sent events.

A request holds the snapshot that it was resolved to from its first to its last token, whatever is promoted meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from models.chat.format import ChatFormatError, Message
from models.sampling.engine import SamplingParams
from orchestrator.errors import ApiError
from orchestrator.http_shared.asgi import error_body
from orchestrator.serving.decoding import Reply
from orchestrator.serving.engines import OutsideEngine, OutsideReply
from orchestrator.serving.schemas import MAX_SEED, ChatRequest
from orchestrator.serving.server import PolicyServer
from orchestrator.serving.snapshots import Snapshot
from orchestrator.serving.text import TextStream

# Above it a prompt is encoded in a thread, so that one long text does not hold up everybody's tokens.
_LONG_PROMPT_CHARS = 20_000
_SEED_BITS = 53


class TokenText:
    """The text of a reply of our own as it grows, whole characters at a time."""

    def __init__(self, reply: Reply, decode: Callable[[Sequence[int]], str]) -> None:
        self._reply = reply
        self._stream = TextStream(decode)

    def piece(self, *, last: bool) -> str:
        """What came since."""
        return self._stream.push(self._reply.ids, last=last)


class OutsideText:
    """The text of an outside engine's reply as it grows."""

    def __init__(self, reply: OutsideReply) -> None:
        self._reply = reply
        self._sent = 0

    def piece(self, *, last: bool) -> str:
        """What came since."""
        new = self._reply.content[self._sent :]
        self._sent += len(new)
        return new


@dataclass(frozen=True)
class Chosen:
    """A reply of the answer, and what is told beside it."""

    reply: Reply | OutsideReply
    text: str
    details: Mapping[str, object]


@dataclass(frozen=True)
class BestOf:
    """How one of k replies is chosen."""

    k: int
    preference_model: str


class Completion:
    """One chat completion: its replies run in the decoding thread while this waits in the event loop."""

    def __init__(
        self,
        server: PolicyServer,
        snapshot: Snapshot,
        prompt_ids: list[int],
        messages: list[Message],
        params: list[SamplingParams],
        request: ChatRequest,
        best_of: BestOf | None,
        details: Mapping[str, object],
    ) -> None:
        self._server = server
        self._best_of = best_of
        self._snapshot = snapshot
        self._model = request.model
        self._include_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._changed = asyncio.Event()
        self._prompt_tokens = len(prompt_ids)
        self._messages = messages
        grows = request.stream and best_of is None
        self._replies: list[Reply | OutsideReply] = [
            OutsideReply(one, self._changed, every_token=grows)
            if isinstance(snapshot.engine, OutsideEngine)
            else Reply(prompt_ids, one, self._changed, every_token=grows)
            for one in params
        ]
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": snapshot.digest,
            "system_fingerprint": snapshot.digest,
            **details,
        }

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """The time in which the replies are decoded; leaving it early frees their slots."""
        server, started_s = self._server, time.monotonic()
        with self._snapshot.held():
            server.replies += len(self._replies)
            stop = self._start()
            try:
                async with asyncio.timeout(server.config.request_timeout_s):
                    yield
            except TimeoutError:
                raise ApiError(
                    504, "timeout", f"Not complete within {server.config.request_timeout_s:.0f} s; given up."
                ) from None
            finally:
                server.replies -= len(self._replies)
                server.measured.ended(self._snapshot.digest, self._snapshot.chat, self._replies, started_s)
                if not all(reply.ended for reply in self._replies):
                    stop()

    def _start(self) -> Callable[[], None]:
        """Begin to decode, here or at the outside engine; gives what stops it."""
        engine, decoding = self._snapshot.engine, self._server.decoding
        if isinstance(engine, OutsideEngine):
            outside = [reply for reply in self._replies if isinstance(reply, OutsideReply)]
            # Closing the connection is how an engine learns that nobody waits any more.
            tasks = [asyncio.create_task(engine.run(self._messages, reply)) for reply in outside]

            def stop() -> None:
                for task in tasks:
                    task.cancel()

            return stop
        own = [reply for reply in self._replies if isinstance(reply, Reply)]
        decoding.submit(engine, own)
        return lambda: decoding.cancel(engine, own)

    async def whole(self, request: Request) -> JSONResponse:
        """The answer in one piece; given up when the client goes away."""
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            async with self._running():
                while not all(reply.ended for reply in self._replies):
                    await self._changed_or(gone)
        finally:
            gone.cancel()
        self._raise_failure()
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": chosen.text},
                "finish_reason": chosen.reply.finished,
                "reply_tokens": chosen.reply.num_tokens(self._snapshot.chat),
                **chosen.details,
            }
            for index, chosen in enumerate(await self._chosen())
        ]
        return JSONResponse({**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage()})

    async def _chosen(self) -> list[Chosen]:
        """The replies of the answer: all that were sampled, or of each k the one that the preference model prefers."""
        texts = [reply.text(self._snapshot.chat) for reply in self._replies]
        if self._best_of is None:
            return [Chosen(reply, text, {}) for reply, text in zip(self._replies, texts, strict=True)]
        k, judge = self._best_of.k, self._best_of.preference_model
        judged: list[list[Message]] = [[*self._messages, {"role": "assistant", "content": text}] for text in texts]
        try:
            scores = await self._server.snapshots.scorers.score(judge, judged)
        except ChatFormatError as error:
            raise ApiError(400, "unusable_messages", f"The preference model can't read this: {error}") from None
        chosen = []
        for first in range(0, len(texts), k):
            # Of equals the first, so that the same request has the same answer.
            best = max(range(first, first + k), key=lambda i: (scores[i], -i))
            choice = {
                "k": k,
                "preference_model": judge,
                "score": scores[best],
                "scores": scores[first : first + k],
                "seed": self._replies[best].params.seed,
            }
            chosen.append(Chosen(self._replies[best], texts[best], {"best_of": choice}))
        return chosen

    async def chunks(self) -> AsyncIterator[str]:
        """The answer as server-sent events; closing the iterator gives the replies up.

        Raises:
            ApiError: it failed before anything came, while the status of the answer can still say so.
        """
        growing_texts = self._growing() if self._best_of is None else self._whole_chunks()
        begun = False
        try:
            # Closed with this one: a reply that nobody reads any more frees its slot at once.
            async with aclosing(growing_texts):
                async for chunk in growing_texts:
                    begun = True
                    yield chunk
        except ApiError as error:
            if not begun:
                raise
            # The status line is long gone; the client learns of the fault from an event.
            yield f"data: {json.dumps(error_body(error.status, error.code, error.message))}\n\n"
            return
        if self._include_usage:
            yield self._event({"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    async def _whole_chunks(self) -> AsyncGenerator[str]:
        """Each reply in one piece, once it is chosen."""
        async with self._running():
            while not all(reply.ended for reply in self._replies):
                await self._changed.wait()
                self._changed.clear()
        self._raise_failure()
        for index, chosen in enumerate(await self._chosen()):
            delta = {"role": "assistant", "content": chosen.text}
            tokens = chosen.reply.num_tokens(self._snapshot.chat)
            yield self._chunk(index, delta, chosen.reply.finished, tokens, chosen.details)

    async def _growing(self) -> AsyncGenerator[str]:
        """The replies as they grow."""
        chat = self._snapshot.chat
        texts = [
            OutsideText(reply) if isinstance(reply, OutsideReply) else TokenText(reply, chat.decode)
            for reply in self._replies
        ]
        growing = set(range(len(self._replies)))
        async with self._running():
            if isinstance(self._snapshot.engine, OutsideEngine):
                # What it thinks of the request is known with its first word.
                await self._changed.wait()
                self._raise_failure()
            for index in growing:
                yield self._chunk(index, {"role": "assistant", "content": ""})
            while growing:
                await self._changed.wait()
                self._changed.clear()
                self._raise_failure()
                for index in sorted(growing):
                    reply = self._replies[index]
                    # Read before the ids, which grow until it is set.
                    finished = reply.finished
                    piece = texts[index].piece(last=finished is not None)
                    if finished is not None:
                        growing.discard(index)
                        delta = {"content": piece} if piece else {}
                        yield self._chunk(index, delta, finished, reply.num_tokens(chat))
                    elif piece:
                        yield self._chunk(index, {"content": piece})

    async def _changed_or(self, gone: asyncio.Future[None]) -> None:
        """Wait until a reply ended, or raise where the client is gone."""
        changed = asyncio.ensure_future(self._changed.wait())
        waited: set[asyncio.Future[Any]] = {changed, gone}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        if gone.done():
            # Nobody reads this answer; it ends the request and frees the slots.
            raise ApiError(499, "client_gone", "The client closed the connection.")
        self._changed.clear()

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        finish: str | None = None,
        reply_tokens: int | None = None,
        details: Mapping[str, object] | None = None,
    ) -> str:
        choice: dict[str, object] = {"index": index, "delta": delta, "finish_reason": finish, **(details or {})}
        if reply_tokens is not None:
            choice["reply_tokens"] = reply_tokens
        return self._event({"choices": [choice]})

    def _event(self, fields: Mapping[str, object]) -> str:
        return f"data: {json.dumps({**self._head, 'object': 'chat.completion.chunk', **fields})}\n\n"

    def _usage(self) -> dict[str, int]:
        reply_tokens = sum(reply.num_tokens(self._snapshot.chat) for reply in self._replies)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": reply_tokens,
            "total_tokens": self._prompt_tokens + reply_tokens,
        }

    def _raise_failure(self) -> None:
        for reply in self._replies:
            if isinstance(reply, OutsideReply) and reply.refusal is not None:
                raise reply.refusal
            if reply.failure is not None:
                raise ApiError(503, "decoding_failed", reply.failure, retry_after_s=1)


async def begin(server: PolicyServer, request: ChatRequest) -> Completion:
    """The request, resolved to a snapshot and encoded, ready to run."""
    k = request.best_of or 1
    if server.replies + request.n * k > server.config.max_replies:
        raise ApiError(
            503,
            "overloaded",
            f"{server.replies} replies run or wait; the limit is {server.config.max_replies}. Try again in a moment.",
            retry_after_s=1,
        )
    snapshot = await server.snapshots.resolve(request.model)
    judge = None
    if k > 1 and request.preference_model is not None:
        judge = await server.snapshots.scorers.digest_of(request.preference_model)
    messages: list[Message] = [{"role": m.spoken_by, "content": m.text()} for m in request.messages]
    try:
        # Held while another thread encodes: what is not held may be let go.
        with snapshot.held():
            if sum(len(message["content"]) for message in messages) > _LONG_PROMPT_CHARS:
                prompt_ids = await run_in_threadpool(snapshot.chat.encode, messages, reply=True)
            else:
                prompt_ids = snapshot.chat.encode(messages, reply=True)
    except ChatFormatError as error:
        raise ApiError(400, "unusable_messages", str(error)) from None
    max_tokens = _max_tokens(server, request, snapshot, len(prompt_ids))
    seeds = _seeds(request.seed, request.n * k)
    params = [SamplingParams(max_tokens, request.temperature, request.top_p, one) for one in seeds]
    choice = None if judge is None else BestOf(k, judge)
    details = {} if server.detector is None else await server.detector.judge(messages)
    return Completion(server, snapshot, prompt_ids, messages, params, request, choice, details)


def _seeds(asked: int | None, count: int) -> list[int]:
    """Successive seeds from the one that was asked for, or from one that is drawn."""
    # vLLM and llama.cpp draw one for -1; any other negative seed is a seed like the rest.
    first = secrets.randbits(_SEED_BITS) if asked is None or asked == -1 else asked
    # Engines of others take none above the largest int64.
    return [(first + i) % (MAX_SEED + 1) for i in range(count)]


def _max_tokens(server: PolicyServer, request: ChatRequest, snapshot: Snapshot, prompt_tokens: int) -> int:
    requested = request.max_completion_tokens or request.max_tokens
    if requested is not None and requested > server.config.max_tokens:
        raise ApiError(
            400, "max_tokens_too_large", f"max_tokens is {requested}; this server allows {server.config.max_tokens}."
        )
    context = snapshot.engine.max_context
    room = server.config.max_tokens if context is None else context - prompt_tokens
    if room < (requested or 1):
        raise ApiError(
            400,
            "context_length_exceeded",
            f"{prompt_tokens} prompt tokens and a reply of up to {requested or 1} do not fit the context of {context}. "
            "Shorten the messages or lower max_tokens.",
        )
    return requested or int(min(room, server.config.max_tokens))


async def _disconnected(request: Request) -> None:
    """Return when the client has gone; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
