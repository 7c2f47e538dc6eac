"""From what a request calls an artifact to its digest."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from db.session import transaction
from orchestrator.errors import ApiError
from orchestrator.store.deployments import digests_of

logger = logging.getLogger(__name__)

_PREFIX = re.compile(r"(sha256:)?[0-9a-f]{6,64}")


async def full_digest(
    database: Engine, name: str, kinds: tuple[str, ...], what: str, expected: str, held: Iterable[str]
) -> str:
    """The digest of the one artifact of these kinds that begins so; those `held` in memory need no look-up.

    `what` and `expected` are for the refusals.

    Raises:
        ApiError: 404, there is none; 400, more than one; 503, the database does not answer.
    """
    if not _PREFIX.fullmatch(name):
        raise ApiError(
            404, "model_not_found", f"Model {name!r} is unknown; expected {expected} (sha256:...), or its beginning."
        )
    prefix = "sha256:" + name.removeprefix("sha256:")
    found = [digest for digest in held if digest.startswith(prefix)]
    if len(found) != 1:
        try:
            found = await asyncio.to_thread(_find, database, prefix, kinds)
        except SQLAlchemyError as error:
            raise database_away(prefix, error) from None
    if not found:
        raise ApiError(404, "model_not_found", f"There is no {what} with a digest that begins {prefix}.")
    if len(found) > 1:
        raise ApiError(400, "ambiguous_model", f"More than one {what} begins {prefix}; give more digits.")
    return found[0]


def database_away(name: str, error: SQLAlchemyError) -> ApiError:
    """The answer while the database does not give what was looked up."""
    logger.warning("looking up %s: %s", name, error)
    return ApiError(503, "database_unavailable", "The database does not answer.", retry_after_s=2)


def _find(database: Engine, prefix: str, kinds: tuple[str, ...]) -> list[str]:
    with transaction(database) as session:
        return digests_of(session, prefix, kinds)
