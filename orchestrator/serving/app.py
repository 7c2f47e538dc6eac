"""The policy server's routes: chat completions of every held snapshot, and the admin's load, promote and unload.

A request holds the snapshot that it was resolved to from its first to its last token, whatever is promoted meanwhile.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from db.session import make_engine
from models.chat.format import ChatFormatError, Message
from models.sampling.engine import SamplingParams
from orchestrator.errors import ApiError
from orchestrator.http_shared.asgi import BodyLimit, add_error_handlers, error_body
from orchestrator.http_shared.metrics import CountRequests, Metrics
from orchestrator.serving.callers import Callers
from orchestrator.serving.decoding import DecodeThread, Reply
from orchestrator.serving.engines import OutsideEngine, OutsideReply
from orchestrator.serving.far_requests import Gate, GateConfig
from orchestrator.serving.schemas import ChatRequest, SnapshotName
from orchestrator.serving.snapshots import LIVE, Snapshot, SnapshotLimits, Snapshots
from orchestrator.serving.text import TextStream
from orchestrator.store.artifacts import ArtifactStore

# Above it a prompt is encoded in a thread, so that one long text does not hold up everybody's tokens.
_LONG_PROMPT_CHARS = 20_000
_SEED_BITS = 53


@dataclass(frozen=True)
class PolicyServerConfig:
    """Where the policy server's database and artifacts are, and its limits."""

    database_url: str
    artifact_url: str
    cache: Path
    limits: SnapshotLimits
    admin_token: str | None = None
    """Without it the admin calls are closed."""
    require_keys: bool = False
    """Whether /v1 asks for an API key; else everybody who reaches the server may use it."""
    requests_per_minute: int = 600
    """Of each API key that has no limit of its own."""
    gate: GateConfig | None = None
    """The detector that judges each request, and what becomes of those far from home."""
    max_tokens: int = 4096
    """Longest reply that a request may ask for."""
    max_replies: int = 1024
    """Replies that run or wait; beyond it requests are refused for the moment."""
    request_timeout_s: float = 300.0
    max_body_bytes: int = 1_000_000


class PolicyServer:
    """What the routes work with: the snapshots and the decoding thread."""

    def __init__(self, config: PolicyServerConfig) -> None:
        self.config = config
        self.decoding = DecodeThread()
        self.database = make_engine(config.database_url)
        store = ArtifactStore(config.artifact_url, config.cache)
        self.snapshots = Snapshots(self.database, store, config.limits)
        gate = config.gate
        self.gate = None if gate is None else Gate(gate, self.database, store, config.limits.device)
        self.callers = Callers(self.database, config.admin_token, config.requests_per_minute)
        self.replies = 0

    async def begin(self, request: ChatRequest) -> Completion:
        """The request, resolved to a snapshot and encoded, ready to run."""
        k = request.best_of or 1
        if self.replies + request.n * k > self.config.max_replies:
            raise ApiError(
                503,
                "overloaded",
                f"{self.replies} replies run or wait; the limit is {self.config.max_replies}. Try again in a moment.",
                retry_after_s=1,
            )
        snapshot = await self.snapshots.resolve(request.model)
        judge = None
        if k > 1 and request.preference_model is not None:
            judge = await self.snapshots.scorers.digest_of(request.preference_model)
        messages: list[Message] = [{"role": m.role, "content": m.text()} for m in request.messages]
        try:
            # Held while another thread encodes: what is not held may be let go.
            with snapshot.held():
                if sum(len(message["content"]) for message in messages) > _LONG_PROMPT_CHARS:
                    prompt_ids = await run_in_threadpool(snapshot.chat.encode, messages, reply=True)
                else:
                    prompt_ids = snapshot.chat.encode(messages, reply=True)
        except ChatFormatError as error:
            raise ApiError(400, "unusable_messages", str(error)) from None
        max_tokens = self._max_tokens(request, snapshot, len(prompt_ids))
        seed = request.seed if request.seed is not None else secrets.randbits(_SEED_BITS)
        seeds = range(seed, seed + request.n * k)
        params = [SamplingParams(max_tokens, request.temperature, request.top_p, one) for one in seeds]
        choice = None if judge is None else BestOf(k, judge)
        told = {} if self.gate is None else await self.gate.judge(messages)
        return Completion(self, snapshot, prompt_ids, messages, params, request, choice, told)

    def _max_tokens(self, request: ChatRequest, snapshot: Snapshot, prompt_tokens: int) -> int:
        asked = request.max_completion_tokens or request.max_tokens
        if asked is not None and asked > self.config.max_tokens:
            raise ApiError(
                400, "max_tokens_too_large", f"max_tokens is {asked}; this server allows {self.config.max_tokens}."
            )
        context = snapshot.engine.max_context
        room = self.config.max_tokens if context is None else context - prompt_tokens
        if room < (asked or 1):
            raise ApiError(
                400,
                "context_length_exceeded",
                f"{prompt_tokens} prompt tokens and a reply of up to {asked or 1} do not fit the context of {context}. "
                "Shorten the messages or lower max_tokens.",
            )
        return asked or min(room, self.config.max_tokens)


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
    told: dict[str, Any]


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
        told: dict[str, Any],
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
            **told,
        }

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """The time in which the replies are decoded; leaving it early frees their slots."""
        server = self._server
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
                **chosen.told,
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
            told = {
                "k": k,
                "preference_model": judge,
                "score": scores[best],
                "scores": scores[first : first + k],
                "seed": self._replies[best].params.seed,
            }
            chosen.append(Chosen(self._replies[best], texts[best], {"best_of": told}))
        return chosen

    async def chunks(self) -> AsyncIterator[str]:
        """The answer as server-sent events; closing the iterator gives the replies up."""
        growing_texts = self._growing() if self._best_of is None else self._whole_chunks()
        try:
            # Closed with this one: a reply that nobody reads any more frees its slot at once.
            async with aclosing(growing_texts):
                async for chunk in growing_texts:
                    yield chunk
        except ApiError as error:
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
            yield self._chunk(index, delta, chosen.reply.finished, tokens, chosen.told)

    async def _growing(self) -> AsyncGenerator[str]:
        """The replies as they grow."""
        chat = self._snapshot.chat
        texts = [
            OutsideText(reply) if isinstance(reply, OutsideReply) else TokenText(reply, chat.decode)
            for reply in self._replies
        ]
        growing = set(range(len(self._replies)))
        async with self._running():
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
        told: dict[str, Any] | None = None,
    ) -> str:
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": finish, **(told or {})}
        if reply_tokens is not None:
            choice["reply_tokens"] = reply_tokens
        return self._event({"choices": [choice]})

    def _event(self, fields: dict[str, Any]) -> str:
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
            if reply.failure is not None:
                raise ApiError(503, "decoding_failed", reply.failure, retry_after_s=1)


def create_app(config: PolicyServerConfig) -> FastAPI:
    """The policy server over one database and one artifact store."""
    server = PolicyServer(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.decoding.start()
        following = asyncio.create_task(server.snapshots.follow())
        yield
        following.cancel()
        await server.snapshots.close()
        if server.gate is not None:
            server.gate.close()
        await asyncio.to_thread(server.decoding.stop)
        server.database.dispose()

    # The pages of /docs would load scripts from another host; the OpenAPI document itself is served.
    app = FastAPI(title="Policy server", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    metrics = Metrics("policy_server")
    snapshots = server.snapshots
    metrics.watch(
        gauges={
            "replies": ("Replies that run or wait", lambda: server.replies),
            "snapshots": ("Snapshots in memory", lambda: len(snapshots.held())),
            "live": ("1 while a policy is live", lambda: float(snapshots.live is not None)),
        },
        counters={
            "reply_tokens": ("Tokens decoded", lambda: server.decoding.tokens),
            "swaps": ("How often another snapshot became the live one", lambda: snapshots.swaps),
            "far_requests": (
                "Requests that the gate found far from home",
                lambda: server.gate.far if server.gate else 0,
            ),
            "failed_loads": ("Snapshots that could not be loaded", lambda: snapshots.failed_loads),
        },
    )
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(CountRequests, metrics=metrics)
    add_error_handlers(app)
    app.add_api_route("/metrics", metrics.answer, include_in_schema=False)
    _add_public(app, server)
    _add_admin(app, server)
    return app


def _add_public(app: FastAPI, server: PolicyServer) -> None:
    snapshots = server.snapshots

    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, str]:
        """What answers here, for a person who opens the address in a browser."""
        return {
            "service": "policy server, which answers raters and programs; people chat in the feedback app",
            "calls": "/openapi.json",
            "state": "/health",
            "models": "/v1/models",
            "chat": "/v1/chat/completions",
            "documentation": "docs/reference/api.md",
        }

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """What is held, what is live, and what is wrong. 200 for as long as the process serves."""
        live = snapshots.live
        return {
            "status": "ok" if live is not None else "waiting",
            "live": live.digest if live is not None else None,
            "message": snapshots.trouble,
            "replies": server.replies,
            "snapshots": [
                {
                    "digest": one.digest,
                    "wanted": snapshots.wanted(one),
                    "requests": one.in_flight,
                    "fingerprint": "proven" if one.proven else "none recorded",
                }
                for one in snapshots.held()
            ],
            "preference_models": snapshots.scorers.held(),
        }

    async def allowed(authorization: Annotated[str | None, Header()] = None) -> None:
        if server.config.require_keys:
            await server.callers.check(authorization)

    for_programs = [Depends(allowed)]

    @app.get("/v1/models", dependencies=for_programs)
    async def models() -> dict[str, Any]:
        """Every snapshot in memory, and the alias of the live one."""
        held = [(one.digest, one) for one in snapshots.held()]
        if snapshots.live is not None:
            held.insert(0, (LIVE, snapshots.live))
        return {
            "object": "list",
            "data": [
                {
                    "id": name,
                    "object": "model",
                    "created": int(one.loaded_at),
                    "owned_by": "rlhf-orchestrator",
                    "snapshot": one.digest,
                }
                for name, one in held
            ],
        }

    @app.post("/v1/chat/completions", response_model=None, dependencies=for_programs)
    async def chat_completions(body: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        """Sample replies to a dialogue."""
        completion = await server.begin(body)
        if not body.stream:
            return await completion.whole(request)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(completion.chunks(), media_type="text/event-stream", headers=headers)


def _add_admin(app: FastAPI, server: PolicyServer) -> None:
    snapshots = server.snapshots

    async def admin(x_admin_token: Annotated[str | None, Header()] = None) -> None:
        expected = server.config.admin_token
        if not expected:
            raise ApiError(403, "no_admin_token", "This server has no admin token (ORCHESTRATOR_ADMIN_TOKEN).")
        # In constant time: how long it takes must not tell how much of a guess was right.
        if not hmac.compare_digest((x_admin_token or "").encode(), expected.encode()):
            raise ApiError(401, "wrong_admin_token", "The header X-Admin-Token is missing or wrong.")

    only_admin = [Depends(admin)]

    @app.post("/admin/load", dependencies=only_admin)
    async def load(name: SnapshotName) -> dict[str, str]:
        """Fetch, verify and hold a snapshot; what neither is live nor paired goes again once idle."""
        snapshot = await snapshots.load(await snapshots.digest_of(name.digest))
        return {"digest": snapshot.digest}

    @app.post("/admin/promote", dependencies=only_admin)
    async def promote(name: SnapshotName) -> dict[str, str]:
        """Let policy-live mean this snapshot for requests that begin from now on."""
        digest = await snapshots.digest_of(name.digest)
        await snapshots.promote(digest)
        return {"digest": digest}

    @app.post("/admin/unload", dependencies=only_admin)
    async def unload(name: SnapshotName) -> dict[str, str]:
        """Let go of a snapshot as soon as its requests are done."""
        digest = await snapshots.digest_of(name.digest)
        snapshots.unload(digest)
        return {"digest": digest}


async def _disconnected(request: Request) -> None:
    """Return when the client has gone; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
