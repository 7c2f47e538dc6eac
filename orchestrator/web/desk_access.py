"""Who sits at the desk: operators by name, and whoever has the admin token. The session is a signed cookie.

Nothing is stored of a session; an operator who has ended is nobody at the next request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

DESK_LIFETIME_S = 12 * 3600


def is_admin_token(given: str, admin_token: str | None) -> bool:
    """Whether this is the admin token, compared in constant time; never where none is set."""
    return admin_token is not None and hmac.compare_digest(given.encode(), admin_token.encode())


def desk_cookie(admin_token: str, now: float | None = None, operator: tuple[int, str] | None = None) -> str:
    """A session of the desk: when it ends, something random, whose, and a signature that only the admin token gives.

    `operator` are id and token digest of who signed in; None for the admin. Another admin token ends every session.
    """
    ends = int((time.time() if now is None else now) + DESK_LIFETIME_S)
    body = f"{ends}.{secrets.token_urlsafe(16)}"
    if operator is not None:
        body += f".{operator[0]}.{operator[1]}"
    return f"{body}.{_signature(admin_token, 'desk', body)}"


def is_desk_cookie(cookie: str | None, admin_token: str | None, now: float | None = None) -> bool:
    """Whether the cookie is one of ours and has not ended."""
    if not cookie or not admin_token:
        return False
    body, _, signature = cookie.rpartition(".")
    ends, _, _ = body.partition(".")
    if not hmac.compare_digest(signature.encode(), _signature(admin_token, "desk", body).encode()):
        return False
    # Only what we signed is read, so it is a number.
    return int(ends) > (time.time() if now is None else now)


def operator_in(cookie: str) -> tuple[int, str] | None:
    """Whose session a cookie of ours is: id and token digest of an operator; None for the admin's."""
    _, _, *whose, _ = cookie.split(".")
    return (int(whose[0]), whose[1]) if whose else None


def desk_csrf(cookie: str, admin_token: str) -> str:
    """What the desk's forms carry; nobody without the cookie and the token can know it."""
    return _signature(admin_token, "csrf", cookie)


def _signature(admin_token: str, purpose: str, text: str) -> str:
    return hmac.new(admin_token.encode(), f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()
