"""Raters and their tokens: whoever holds a token is that rater. The token itself is shown once and never stored."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import OrchestratorError

KINDS = ("human", "synthetic")
STATUSES = ("select", "normal", "banned")
WITHDRAWN = "withdrawn"
"""Status of a rater who withdrew (`orchestrator/people/withdrawal.py`); it is final."""

# 32 random bytes: nothing is gained by guessing, so a plain SHA-256 of the token is enough to store.
_TOKEN_BYTES = 32
_HANDLE = re.compile(r"[\w.@+-]{1,100}")
# Built once: it is part of every request, and building a statement costs more than running it.
_BY_TOKEN = select(t.Rater.id, t.Rater.handle, t.Rater.status).where(t.Rater.token_digest == bindparam("digest"))


class RaterError(OrchestratorError):
    """A rater does not exist, exists already, or would get an unusable name or status."""


@dataclass(frozen=True)
class RaterIdentity:
    """Who a token belongs to."""

    id: int
    handle: str
    status: str

    @property
    def banned(self) -> bool:
        """Whether the rater may no longer take part."""
        return self.status in ("banned", WITHDRAWN)


def token_digest(token: str) -> str:
    """What is stored of a token: SHA-256, hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def create_rater(
    session: Session, handle: str, *, kind: str = "human", platform: str | None = None
) -> tuple[t.Rater, str]:
    """Add a rater; returns the row and the token, which can't be had again.

    Raises:
        RaterError: the handle is taken or unusable, or the kind is unknown.
    """
    if not _HANDLE.fullmatch(handle):
        raise RaterError(f"Handle {handle!r} is not usable: give 1 to 100 letters, digits or any of . @ + - _.")
    if handle.startswith("erased-"):
        raise RaterError(f"Handle {handle!r} is kept for raters who were erased. Choose another.")
    if kind not in KINDS:
        raise RaterError(f"Kind {kind!r} is unknown; expected {' or '.join(KINDS)}.")
    if session.execute(select(t.Rater.id).where(t.Rater.handle == handle)).first() is not None:
        raise RaterError(f"Rater {handle!r} exists already. `orchestrator rater token {handle}` gives a new token.")
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    rater = t.Rater(handle=handle, kind=kind, platform=platform, token_digest=token_digest(token))
    session.add(rater)
    session.flush()
    return rater, token


def renew_token(session: Session, handle: str) -> str:
    """A new token for a rater; the old one ends at once."""
    rater = _taking_part(session, handle)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    rater.token_digest = token_digest(token)
    session.flush()
    return token


def set_status(session: Session, handle: str, status: str) -> t.Rater:
    """Make a rater `select`, `normal` or `banned`; holds from the next request on."""
    if status not in STATUSES:
        raise RaterError(f"Status {status!r} is unknown; expected one of {', '.join(STATUSES)}.")
    rater = _taking_part(session, handle)
    rater.status = status
    session.flush()
    return rater


def get_rater(session: Session, handle: str) -> t.Rater:
    """The rater of that handle, locked for change; RaterError where there is none."""
    rater = session.execute(select(t.Rater).where(t.Rater.handle == handle).with_for_update()).scalar_one_or_none()
    if rater is None:
        raise RaterError(f"There is no rater {handle!r}. `orchestrator rater list` shows those there are.")
    return rater


def _taking_part(session: Session, handle: str) -> t.Rater:
    rater = get_rater(session, handle)
    if rater.status == WITHDRAWN:
        raise RaterError(f"Rater {handle!r} withdrew, for good. Whoever wants to take part again joins as a new rater.")
    return rater


def rater_by_token(session: Session, token: str) -> RaterIdentity | None:
    """Whose token it is; None where it is nobody's."""
    # Looked up by digest: the comparison's timing tells nothing about the token.
    row = session.execute(_BY_TOKEN, {"digest": token_digest(token)}).one_or_none()
    return RaterIdentity(row.id, row.handle, row.status) if row else None
