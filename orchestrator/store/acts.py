"""Who did something to the loop, how their name is known, and the record of what has no row of its own.

A decision has its row in `decisions`; everything else that a person does stands in `operator_acts`.
"""

from __future__ import annotations

import getpass
import socket
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import OrchestratorError

Identity = Literal["program", "proven", "claimed", "machine"]
Via = Literal["program", "desk", "prefect", "command"]
LONGEST_NAME = 100
LONGEST_REASON = 2000


class Unsaid(OrchestratorError):
    """A name or a reason is missing, or too long to be kept."""


@dataclass(frozen=True)
class Actor:
    """Who acts: a person, or a part of the program."""

    name: str
    identity: Identity
    via: Via

    @property
    def said(self) -> str:
        """The name, and how it is known."""
        return said_of(self.name, self.identity)


GATES = Actor("gates", "program", "program")
TIMEOUT = Actor("timeout", "program", "program")
RESERVED = frozenset({GATES.name, TIMEOUT.name, "admin", "program"})
"""Names that no person may have: they would pass for somebody else's doing."""


def said_of(name: str, identity: str) -> str:
    """A name and how it is known, as every page, report and command says it."""
    known = {"proven": "proven by a token", "claimed": "as typed into a form", "machine": "user of that machine"}
    if identity == "program":
        return {GATES.name: "the gates", TIMEOUT.name: "nobody, in time"}.get(name, name)
    return f"{name} ({known[identity]})"


def machine_user() -> Actor:
    """Who types a command: the user as the machine names them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A container's user without a name.
        user = "unknown"
    return Actor(f"{user}@{socket.gethostname()}", "machine", "command")


def claimed(name: str) -> Actor:
    """Somebody who typed their name into a form of Prefect's, which knows no users.

    Raises:
        Unsaid: no name, or one of the program's.
    """
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME:
        raise Unsaid(f"The name is {name[:40]!r}; expected who you are, in at most {LONGEST_NAME} characters.")
    if name.lower() in RESERVED:
        raise Unsaid(f"The name {name!r} is the program's own. Give yours.")
    return Actor(name, "claimed", "prefect")


def reason_of(text: str) -> str:
    """Why somebody acts, in their words.

    Raises:
        Unsaid: nothing was written, or too much.
    """
    text = text.replace("\0", "").strip()
    if not text:
        raise Unsaid("No reason was given. Say why, in a sentence: it stands on the record.")
    if len(text) > LONGEST_REASON:
        raise Unsaid(f"The reason has {len(text):,} characters; at most {LONGEST_REASON:,} are kept. Shorten it.")
    return text


def record_act(session: Session, actor: Actor, act: str, subject: str, **details: Any) -> None:
    """Write down what a person did: `act` in one word ("end_study"), to what ("study prolific/5f")."""
    session.add(
        t.OperatorAct(
            actor=actor.name, identity=actor.identity, via=actor.via, act=act, subject=subject, details=details
        )
    )
    session.flush()


def newest_acts(session: Session, limit: int) -> list[t.OperatorAct]:
    """What people did last, the newest first."""
    return list(session.scalars(select(t.OperatorAct).order_by(t.OperatorAct.id.desc()).limit(limit)))
