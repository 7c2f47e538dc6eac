"""Helpers of the tests of both services: a real uvicorn on a free port, and the rows that a live policy needs."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.store import deployments


@contextmanager
def running(app: Any, port: int = 0) -> Iterator[str]:
    """The application under a real uvicorn in a thread; gives its base URL."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(256)
    started = threading.Event()
    end: Callable[[], object]

    class Server(uvicorn.Server):
        async def main_loop(self) -> None:
            nonlocal end
            # uvicorn looks ten times a second whether it shall end. Two servers for every test of a page waited for
            # the next look: half a minute of the whole suite.
            ended = asyncio.Event()
            end = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, ended.set)
            ticks = asyncio.create_task(super().main_loop())
            started.set()
            await ended.wait()
            ticks.cancel()

    server = Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert started.wait(20), "the server did not start"
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        end()
        thread.join(20)
        listener.close()


def digest_of(name: str) -> str:
    """A digest for an artifact that has no files."""
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def add_artifact(
    session: Session,
    name: str,
    *,
    kind: str = "snapshot",
    digest: str | None = None,
    results: dict[str, Any] | None = None,
) -> t.Artifact:
    """An artifact's row; its digest is of `name` unless it has files with one."""
    artifact = t.Artifact(
        kind=kind,
        fingerprint=hashlib.sha256(f"fingerprint of {name}".encode()).hexdigest(),
        digest=digest or digest_of(name),
        settings={},
        results=results or {},
        num_bytes=1,
    )
    session.add(artifact)
    session.flush()
    return artifact


def add_cycle(session: Session, number: int, **serving: Any) -> t.Cycle:
    """A cycle that is over, with a [serving] section."""
    cycle = t.Cycle(number=number, name="test", state="promoted", config={"serving": serving}, ended_at=_now(session))
    session.add(cycle)
    session.flush()
    return cycle


def _now(session: Session) -> Any:
    """The database's time."""
    return session.execute(select(func.now())).scalar_one()


def deploy(session: Session, artifact: t.Artifact, cycle: t.Cycle | None = None) -> t.Deployment:
    """Put an artifact live, with the decision that this takes."""
    cycle_id = cycle.id if cycle else None
    decision = t.Decision(
        cycle_id=cycle_id, snapshot_id=artifact.id, decision="promote", reasons=[], evidence={}, decided_by="test"
    )
    session.add(decision)
    session.flush()
    return deployments.deploy(session, artifact.id, decision.id, cycle_id)
