"""Who may ask the policy server for replies: programs with an API key, so many times a minute."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from db import tables as t
from db.session import transaction
from orchestrator.errors import ApiError
from orchestrator.http_shared.limits import RateLimit
from orchestrator.people.raters import token_digest
from orchestrator.serving.keys import service_key

logger = logging.getLogger(__name__)

_REMEMBERED_S = 5.0
"""How long a look-up holds: a key that was ended opens nothing after so many seconds."""
_MAX_REMEMBERED = 1000


@dataclass(frozen=True)
class _Key:
    name: str
    requests_per_minute: int | None


class Callers:
    """Knows the keys, and how often each was used."""

    def __init__(self, database: Engine, admin_token: str | None, requests_per_minute: int) -> None:
        self._database = database
        self._own = None if admin_token is None else service_key(admin_token)
        self._limit = RateLimit(requests_per_minute)
        self._remembered: OrderedDict[str, tuple[float, _Key | None]] = OrderedDict()

    async def check(self, authorization: str | None) -> None:
        """Let a request go ahead that carries a key which is good and not used too often.

        Raises:
            ApiError: 401, no key or one that opens nothing; 429, too many requests; 503, the database is away.
        """
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given:
            raise ApiError(401, "no_api_key", "Send the header 'Authorization: Bearer <API key>'.")
        if self._own is not None and hmac.compare_digest(given.encode(), self._own.encode()):
            return
        key = await self._key(token_digest(given))
        if key is None:
            raise ApiError(401, "unknown_api_key", "This API key opens nothing here. Ask the operator for one.")
        wait_s = self._limit.take(key.name, key.requests_per_minute)
        if wait_s is not None:
            limit = key.requests_per_minute or self._limit.per_minute
            message = f"Key {key.name!r} may send {limit:.0f} requests a minute. Wait {wait_s} s."
            raise ApiError(429, "rate_limited", message, retry_after_s=wait_s)

    async def _key(self, digest: str) -> _Key | None:
        now = time.monotonic()
        found = self._remembered.get(digest)
        if found is not None and now - found[0] < _REMEMBERED_S:
            return found[1]
        try:
            key = await asyncio.to_thread(self._read, digest)
        except SQLAlchemyError as error:
            logger.warning("looking up an API key: %s", error)
            if found is not None and found[1] is not None:
                # It was good a moment ago; replies must not stop because Postgres restarts.
                return found[1]
            raise ApiError(503, "database_unavailable", "The database does not answer.", retry_after_s=2) from None
        self._remembered[digest] = (now, key)
        self._remembered.move_to_end(digest)
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return key

    def _read(self, digest: str) -> _Key | None:
        with transaction(self._database) as session:
            row = session.execute(
                select(t.ApiKey.name, t.ApiKey.requests_per_minute).where(
                    t.ApiKey.key_digest == digest, t.ApiKey.ended_at.is_(None)
                )
            ).one_or_none()
            return None if row is None else _Key(row.name, row.requests_per_minute)
