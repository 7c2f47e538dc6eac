"""API keys: how programs reach the policy server. Apart from raters' tokens and from the admin token."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import OrchestratorError
from orchestrator.people.raters import token_digest

_PREFIX = "orch-"
"""By which a key is known where it lies around."""
_KEY_BYTES = 32


class ApiKeyError(OrchestratorError):
    """An API key does not exist, exists already, or can't be as asked."""


def create_key(session: Session, name: str, requests_per_minute: int | None = None) -> str:
    """Add a key for a program; returns the key itself, which is shown once and never stored.

    Raises:
        ApiKeyError: the name is taken or unusable, or the limit is below 1.
    """
    if not name.strip() or len(name) > 100:
        raise ApiKeyError(f"Key name {name!r} is not usable: give 1 to 100 characters that say which program has it.")
    if requests_per_minute is not None and not 1 <= requests_per_minute <= 1_000_000:
        raise ApiKeyError(f"The key's limit is {requests_per_minute} requests a minute; expected 1 to 1,000,000.")
    if session.execute(select(t.ApiKey.id).where(t.ApiKey.name == name)).first() is not None:
        raise ApiKeyError(f"A key named {name!r} exists or existed. Choose another name: logs must stay clear.")
    key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    session.add(t.ApiKey(name=name, key_digest=token_digest(key), requests_per_minute=requests_per_minute))
    session.flush()
    return key


def end_key(session: Session, name: str) -> None:
    """Let a key open nothing any more; a running policy server knows within seconds."""
    key = session.execute(select(t.ApiKey).where(t.ApiKey.name == name).with_for_update()).scalar_one_or_none()
    if key is None:
        raise ApiKeyError(f"There is no key {name!r}. `orchestrator key list` shows those there are.")
    if key.ended_at is None:
        key.ended_at = datetime.now(UTC)
        session.flush()


def service_key(admin_token: str) -> str:
    """The key of the instance's own feedback app; both services derive it from the admin token they share."""
    return _PREFIX + hmac.new(admin_token.encode(), b"feedback app", hashlib.sha256).hexdigest()
