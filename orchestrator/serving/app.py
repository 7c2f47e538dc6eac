"""The policy server's routes: chat completions of every held snapshot, and the admin's load, refresh and unload.

Read next: `completion.py`, a request from its first to its last token, and `server.py`, what the routes work with.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Send

from orchestrator.errors import ApiError
from orchestrator.http_shared.asgi import BodyLimit, add_error_handlers
from orchestrator.http_shared.metrics import CountRequests
from orchestrator.serving.completion import begin
from orchestrator.serving.schemas import ChatRequest, SnapshotName
from orchestrator.serving.server import PolicyServer, PolicyServerConfig
from orchestrator.serving.snapshots import LIVE


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
        if server.detector is not None:
            server.detector.close()
        await asyncio.to_thread(server.decoding.stop)
        server.database.dispose()

    # The pages of /docs would load scripts from another host; the OpenAPI document itself is served.
    app = FastAPI(title="Policy server", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    metrics, snapshots = server.metrics, server.snapshots
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
                "Requests that the detector found far from home",
                lambda: server.detector.far if server.detector else 0,
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


class StreamOnceBegun(StreamingResponse):
    """A stream whose status is sent with its first event: what fails before is an answer of its own status."""

    async def stream_response(self, send: Send) -> None:
        """Send the stream; an ApiError of its first event is raised before anything is sent."""
        events = aiter(self.body_iterator)
        first = await anext(events)

        async def all_events() -> AsyncIterator[Any]:
            yield first
            async for event in events:
                yield event

        self.body_iterator = all_events()
        await super().stream_response(send)


def _add_public(app: FastAPI, server: PolicyServer) -> None:
    async def allowed(authorization: Annotated[str | None, Header()] = None) -> None:
        if server.config.require_keys:
            await server.callers.check(authorization)

    for_programs = [Depends(allowed)]
    _add_state(app, server)
    _add_models(app, server, for_programs)
    _add_completions(app, server, for_programs)


def _add_state(app: FastAPI, server: PolicyServer) -> None:
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
            "deployment": snapshots.deployment.to_json() if snapshots.deployment is not None else None,
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


def _add_models(app: FastAPI, server: PolicyServer, for_programs: list[Any]) -> None:
    snapshots = server.snapshots

    @app.get("/v1/models", dependencies=for_programs)
    async def models() -> dict[str, Any]:
        """Every snapshot in memory, and the alias of the live one."""
        held = [(one.digest, one) for one in snapshots.held()]
        if snapshots.live is not None:
            held.insert(0, (LIVE, snapshots.live))
        return {"object": "list", "data": [_model(name, one.digest, one.loaded_at) for name, one in held]}

    @app.get("/v1/models/{name}", dependencies=for_programs)
    async def model(name: str) -> dict[str, Any]:
        """What a chat completion may name, in memory or not: the alias, a digest, or the beginning of one."""
        if name == LIVE:
            if snapshots.live is None:
                raise ApiError(404, "model_not_found", f"No policy is live yet, so that {LIVE} means none.")
            return _model(name, snapshots.live.digest, snapshots.live.loaded_at)
        digest = await snapshots.digest_of(name)
        return _model(digest, digest, await snapshots.made_at(digest))


def _model(name: str, digest: str, created: float) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(created),
        "owned_by": "rlhf-orchestrator",
        "snapshot": digest,
    }


def _add_completions(app: FastAPI, server: PolicyServer, for_programs: list[Any]) -> None:
    @app.post("/v1/chat/completions", response_model=None, dependencies=for_programs)
    async def chat_completions(body: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        """Sample replies to a dialogue."""
        completion = await begin(server, body)
        if not body.stream:
            return await completion.whole(request)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamOnceBegun(completion.chunks(), media_type="text/event-stream", headers=headers)


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

    @app.post("/admin/refresh", dependencies=only_admin)
    async def refresh() -> dict[str, str | None]:
        """Ask the database now what is live and paired, as every few seconds anyway."""
        await snapshots.refresh()
        if snapshots.trouble and snapshots.behind:
            raise ApiError(503, "not_followed", f"What the database says is live can't be served: {snapshots.trouble}")
        return {"live": snapshots.live.digest if snapshots.live is not None else None}

    @app.post("/admin/unload", dependencies=only_admin)
    async def unload(name: SnapshotName) -> dict[str, str]:
        """Let go of a snapshot as soon as its requests are done."""
        digest = await snapshots.digest_of(name.digest)
        snapshots.unload(digest)
        return {"digest": digest}
