"""What the feedback app works with: its limits, the database, and the sampling of replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from db.session import make_engine, transaction
from orchestrator import settings
from orchestrator.conversations import dialogues, pairs
from orchestrator.errors import ApiError
from orchestrator.http_shared.asgi import error_body
from orchestrator.http_shared.limits import RateLimit
from orchestrator.people.raters import RaterIdentity
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.web.outside_models import OutsideModels
from orchestrator.web.pair_sampling import PairSampling, Sampler, StoreUnavailable
from orchestrator.web.policy_client import PolicyReplies

R = TypeVar("R")

# Proxies close a silent stream after a minute; a comment in between keeps it open.
_KEEP_ALIVE_S = 15.0


@dataclass(frozen=True)
class FeedbackConfig:
    """Where the feedback app's database and policy server are, and its limits."""

    database_url: str
    policy_url: str
    threads: int = 12
    """Handlers that touch the database at the same time; each holds a connection."""
    sampling_timeout_s: float = 120.0
    """How long the replies of a pair may take, a restart of the policy server included."""
    max_body_bytes: int = 1_000_000
    admin_token: str | None = None
    """Opens the desk; without it the desk is closed."""
    prefect_api_url: str | None = None
    """Carries out what is decided at the desk, and shows what is live; None: the cycle's next run carries it out."""
    feedback_url: str | None = None
    """Where the app itself is reached, for links to it."""
    requests_per_minute: int = 3000
    """Of each rater; far beyond what a person can do, so that it stops programs that run wild."""
    sign_ins_per_minute: int = 60
    """Attempts to sign in from one address."""
    policy_key: str | None = None
    """API key for the policy server."""
    artifact_url: str | None = None
    """The artifact store, in which the desk finds reports; None where there is none."""
    cache: Path | None = None
    """Where what is fetched from a store elsewhere is kept."""
    secret_of: Callable[[str], str | None] = settings.secret
    """Finds the API key of an outside endpoint by the name of its environment variable."""


class Feedback:
    """What the routes work with: the database, and the sampling of replies."""

    def __init__(self, config: FeedbackConfig) -> None:
        self.config = config
        self.engine = make_engine(config.database_url, pool_size=config.threads, max_overflow=2)
        self.store = _store_of(config)
        self.policy = PolicyReplies(config.policy_url, config.policy_key)
        self._requests = RateLimit(config.requests_per_minute)
        self._sign_ins = RateLimit(config.sign_ins_per_minute)
        self.outside = OutsideModels()
        self.sampler = Sampler(self.policy, self.outside, self._store, config.sampling_timeout_s, config.secret_of)

    def admit(self, rater: RaterIdentity) -> None:
        """Count a rater's request; ApiError 429 where there are too many."""
        self._refuse(self._requests.take(rater.id), f"More than {self.config.requests_per_minute} requests a minute.")

    def admit_sign_in(self, address: str | None) -> None:
        """Count an attempt to sign in; ApiError 429 where there are too many from one address."""
        self._refuse(self._sign_ins.take(address), "Too many attempts to sign in from your address.")

    def _refuse(self, wait_s: int | None, why: str) -> None:
        if wait_s is not None:
            raise ApiError(429, "rate_limited", f"{why} Wait {wait_s} s; nothing is lost.", retry_after_s=wait_s)

    def transaction(self, work: Callable[[Session], R]) -> R:
        """Do `work` in one transaction."""
        with transaction(self.engine) as session:
            return work(session)

    async def transaction_async(self, work: Callable[[Session], R]) -> R:
        """The same from an async handler."""
        return await run_in_threadpool(self.transaction, work)

    def as_rater(self, token: str, work: Callable[[Session, RaterIdentity], R]) -> R:
        """Do `work` for whoever holds the token, in one transaction."""

        def admitted(session: Session) -> R:
            rater = dialogues.require_rater(session, token)
            self.admit(rater)
            return work(session, rater)

        return self.transaction(admitted)

    async def as_rater_async(self, token: str, work: Callable[[Session, RaterIdentity], R]) -> R:
        """The same from an async handler."""
        return await run_in_threadpool(self.as_rater, token, work)

    async def close(self) -> None:
        """Stop sampling and close all connections."""
        await self.sampler.close()
        await self.policy.close()
        await self.outside.close()
        self.engine.dispose()

    async def _store(self, replies: list[pairs.Sampled]) -> dict[int, str]:
        try:
            return await self.transaction_async(lambda session: pairs.complete_candidates(session, replies))
        except (OperationalError, InterfaceError) as error:
            reason = str(error.orig).strip().partition("\n")[0]
            raise StoreUnavailable(reason) from error


def _store_of(config: FeedbackConfig) -> ArtifactStore | None:
    if config.artifact_url is None or config.cache is None:
        return None
    return ArtifactStore(config.artifact_url, config.cache)


async def server_sent_events(sampling: PairSampling) -> AsyncIterator[str]:
    """The sampling as server-sent events, with a comment now and then while nothing comes."""
    events = sampling.events().__aiter__()
    upcoming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({upcoming}, timeout=_KEEP_ALIVE_S)
            if not done:
                yield ": still sampling\n\n"
                continue
            event = upcoming.result()
            if event is None:
                break
            fields: dict[str, object] = {"side": event.side}
            if event.restart:
                fields |= {"restart": True}
            elif event.complete:
                fields |= {"complete": True}
            else:
                fields |= {"delta": event.delta}
            yield f"data: {json.dumps(fields)}\n\n"
            upcoming = asyncio.ensure_future(anext(events, None))
    finally:
        upcoming.cancel()
    failure = sampling.failure
    if failure is not None:
        yield f"data: {json.dumps(error_body(failure.status, failure.code, failure.message))}\n\n"
