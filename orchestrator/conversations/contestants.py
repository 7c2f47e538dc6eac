"""Who can answer raters, and the pairing table: which contestants meet in a task, and how often.

A contestant is a policy, the best of k replies of one by a preference model, an outside OpenAI-compatible endpoint, or
people who write. Used by the stages, both services and the desk. Needs no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from db import tables as t
from orchestrator.errors import OrchestratorError
from orchestrator.people.queues import get_group
from orchestrator.store.deployments import POLICIES

Kind = Literal["policy", "best_of", "endpoint", "writer"]

MAX_K = 64


class ContestantError(OrchestratorError):
    """A contestant or pairing does not exist, exists already, or can't be as asked."""


@dataclass(frozen=True)
class Contestant:
    """Something that answers a rater's message; which fields are there depends on `kind`."""

    id: int
    name: str
    kind: Kind
    snapshot_id: int | None
    digest: str | None
    """Digest of the weights: of a policy, and of the one whose replies best-of-k chooses from."""
    preference_model: str | None
    """Digest of the preference model that chooses."""
    k: int | None
    url: str | None
    model: str | None
    key_variable: str | None
    group_id: int | None

    @property
    def title(self) -> str:
        """What people read: a policy's digest in short, any other's name."""
        return self.name[7:19] if self.kind == "policy" else self.name


def contestant_columns(alias: type[t.Contestant], weights: type[t.Artifact], judge: type[t.Artifact]) -> list[Any]:
    """The columns of a Contestant, in the order of its fields."""
    return [
        alias.id, alias.name, alias.kind, alias.snapshot_id, weights.digest, judge.digest,
        alias.k, alias.url, alias.model, alias.key_variable, alias.group_id,
    ]  # fmt: skip


def joined_contestant() -> tuple[type[t.Contestant], type[t.Artifact], type[t.Artifact]]:
    return aliased(t.Contestant), aliased(t.Artifact), aliased(t.Artifact)


# Statements are built once: building costs more than running, and every pair that is drawn runs one.
_ONE = joined_contestant()
CONTESTANT_WIDTH = len(fields(Contestant))
_CONTESTANTS = (
    select(*contestant_columns(*_ONE))
    .outerjoin(_ONE[1], _ONE[1].id == _ONE[0].snapshot_id)
    .outerjoin(_ONE[2], _ONE[2].id == _ONE[0].preference_model_id)
    .order_by(_ONE[0].id)
)


def contestants(session: Session) -> list[Contestant]:
    """Every contestant there ever was, oldest first."""
    return [Contestant(*row) for row in session.execute(_CONTESTANTS)]


def get_contestant(session: Session, name: str) -> Contestant:
    """The contestant of that name; of a policy also the beginning of its digest, whether it competed before or not.

    Raises:
        ContestantError: there is none, or several policies begin so.
    """
    row = session.execute(_CONTESTANTS.where(_ONE[0].name == name)).one_or_none()
    if row is not None:
        return Contestant(*row)
    prefix = "sha256:" + name.removeprefix("sha256:")
    if not re.fullmatch(r"sha256:[0-9a-f]{6,64}", prefix):
        raise ContestantError(
            f"There is no contestant {name!r}. Give the name of one, or the digest of a policy (six digits at least); "
            "`orchestrator contestant list` shows those there are."
        )
    return policy(session, _artifact(session, prefix, POLICIES, "policy"))


def policy(session: Session, artifact_id: int) -> Contestant:
    """A policy as a contestant; it becomes one when it is first asked for."""
    artifact = session.get_one(t.Artifact, artifact_id)
    # The same weights may have been published twice; they are one contestant.
    found = session.execute(_CONTESTANTS.where(_ONE[0].name == artifact.digest)).one_or_none()
    if found is None:
        return _add(session, t.Contestant(name=artifact.digest, kind="policy", snapshot_id=artifact_id))
    return Contestant(*found)


def add_best_of(session: Session, name: str, policy_digest: str, judge_digest: str, k: int) -> Contestant:
    """The best of k replies of a policy, chosen by a preference model, as a contestant. Digests may be shortened."""
    if not 2 <= k <= MAX_K:
        raise ContestantError(f"k is {k}; expected 2 to {MAX_K} replies to choose from.")
    snapshot_id = _artifact(session, policy_digest, POLICIES, "policy")
    judge_id = _artifact(session, judge_digest, ("preference_model",), "preference model")
    _free(session, name)
    return _add(
        session,
        t.Contestant(name=name, kind="best_of", snapshot_id=snapshot_id, preference_model_id=judge_id, k=k),
    )


def add_endpoint(session: Session, name: str, url: str, model: str, key_variable: str | None = None) -> Contestant:
    """An outside OpenAI-compatible model as a contestant.

    `url` ends with the API's version (https://host/v1). A key is named by the environment variable of the feedback app
    that holds it, and never stored.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ContestantError(f"The endpoint's URL is {url!r}; expected the base of an API, as https://host/v1.")
    if parts.username or parts.password:
        raise ContestantError("The endpoint's URL holds a password. Put the key into an environment variable instead.")
    if key_variable is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", key_variable):
        raise ContestantError(
            "The key is named by an environment variable (capital letters, digits and _); "
            "what was given is not one. If it was the key itself, treat that as disclosed."
        )
    if not model.strip():
        raise ContestantError("The endpoint's model is empty; give the name by which it is asked for.")
    _free(session, name)
    return _add(
        session,
        t.Contestant(name=name, kind="endpoint", url=url.rstrip("/"), model=model.strip(), key_variable=key_variable),
    )


def add_writer(session: Session, name: str, group: str) -> Contestant:
    """The people of a group as a contestant: one of them writes each reply."""
    group_id = get_group(session, group).id
    _free(session, name)
    return _add(session, t.Contestant(name=name, kind="writer", group_id=group_id))


def _add(session: Session, contestant: t.Contestant) -> Contestant:
    session.add(contestant)
    session.flush()
    return Contestant(*session.execute(_CONTESTANTS.where(_ONE[0].id == contestant.id)).one())


def _free(session: Session, name: str) -> None:
    if not name.strip() or len(name) > 100 or name.startswith("sha256:"):
        raise ContestantError(f"Contestant name {name!r} is not usable: give 1 to 100 characters, not a digest.")
    if session.execute(select(t.Contestant.id).where(t.Contestant.name == name)).first() is not None:
        raise ContestantError(f"Contestant {name!r} exists already, and contestants never change. Choose another name.")


def _artifact(session: Session, digest: str, kinds: tuple[str, ...], what: str) -> int:
    """The id of the one artifact of these kinds whose digest begins so."""
    prefix = "sha256:" + digest.removeprefix("sha256:")
    found = session.execute(
        select(t.Artifact.digest, func.min(t.Artifact.id).label("id"))
        .where(t.Artifact.kind.in_(kinds), t.Artifact.digest.startswith(prefix, autoescape=True))
        .group_by(t.Artifact.digest)
        .limit(2)
    ).all()
    if len(found) != 1 or len(prefix) < len("sha256:") + 6:
        problem = "no" if not found else "more than one"
        raise ContestantError(
            f"There is {problem} {what} with a digest that begins {digest!r}; "
            "`orchestrator artifacts` shows them. Give six digits at least."
        )
    return int(found[0].id)
