"""People at the desk by name, each with a token of their own; what they do stands under their name.

The admin token opens the desk too, for whoever set the product up: what is done with it stands under "admin".
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import OrchestratorError
from orchestrator.people.raters import token_digest
from orchestrator.store.acts import LONGEST_NAME, RESERVED, Actor

ADMIN = Actor("admin", "proven", "desk")
_TOKEN_BYTES = 24


class OperatorError(OrchestratorError):
    """An operator does not exist, has ended, or can't have the name."""


def add_operator(session: Session, name: str) -> tuple[t.Operator, str]:
    """Add a person; returns the row and their token, which can't be had again.

    Raises:
        OperatorError: the name is empty, too long, the program's own, or somebody's already.
    """
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME:
        raise OperatorError(f"The name is {name[:40]!r}; expected one of 1 to {LONGEST_NAME} characters.")
    if name.lower() in RESERVED:
        raise OperatorError(f"The name {name!r} is the program's own. Choose another.")
    if session.scalar(select(t.Operator.id).where(t.Operator.name == name)) is not None:
        raise OperatorError(
            f"There is an operator {name!r}, or there was: a name is given once, as it stands on what they did. "
            "Choose another."
        )
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    operator = t.Operator(name=name, token_digest=token_digest(token))
    session.add(operator)
    session.flush()
    return operator, token


def end_operator(session: Session, name: str) -> None:
    """Let nobody in by their token any more, at once; what they did stays.

    Raises:
        OperatorError: there is no such operator, or they have ended.
    """
    found = session.scalars(select(t.Operator).where(t.Operator.name == name).with_for_update()).one_or_none()
    if found is None or found.ended_at is not None:
        raise OperatorError(
            f"There is no operator {name!r} who could end. `orchestrator operator list` shows those there are."
        )
    found.ended_at = datetime.now(UTC)
    session.flush()


def operators(session: Session) -> list[t.Operator]:
    """Everybody who is or was at the desk."""
    return list(session.scalars(select(t.Operator).order_by(t.Operator.id)))


def operator_with(session: Session, token: str) -> t.Operator | None:
    """Whose token this is; None where it is nobody's, or theirs has ended."""
    return _current(session, t.Operator.token_digest == token_digest(token))


def operator_of(session: Session, operator_id: int, digest: str) -> t.Operator | None:
    """The operator of a session that was begun with the token of this digest; None once either is over."""
    return _current(session, t.Operator.id == operator_id, t.Operator.token_digest == digest)


def _current(session: Session, *where: ColumnElement[bool]) -> t.Operator | None:
    return session.scalars(select(t.Operator).where(*where, t.Operator.ended_at.is_(None))).one_or_none()


def as_actor(operator: t.Operator) -> Actor:
    """The operator as whoever acts at the desk."""
    return Actor(operator.name, "proven", "desk")
