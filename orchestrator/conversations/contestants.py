"""Who can answer raters, and the pairing table: which contestants meet in a task, and how often.

A contestant is a policy, the best of k replies of one by a preference model, an outside OpenAI-compatible endpoint, or
people who write. Used by the stages, both services and the desk. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from sqlalchemy import bindparam, func, select, true
from sqlalchemy.orm import Session, aliased

from db import tables as t
from orchestrator.errors import OrchestratorError
from orchestrator.people.queues import get_group
from orchestrator.people.tasks import TaskName
from orchestrator.store.deployments import LIVE, POLICIES, LiveDeployment, live_deployment

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


@dataclass(frozen=True)
class ActivePairing:
    """Two contestants that meet in a task, drawn with this weight."""

    id: int
    task: TaskName
    weight: float
    cycle_id: int | None
    a: Contestant
    b: Contestant


@dataclass(frozen=True)
class PairingFigures:
    """A row of the pairing table and what it brought so far."""

    pairing: ActivePairing
    created_at: datetime
    ended_at: datetime | None
    pairs: int
    """Pairs drawn by it."""
    complete: int
    """Pairs of which both replies are there."""
    compared: int
    won_a: int
    won_b: int
    undecided: int


def _columns(alias: type[t.Contestant], weights: type[t.Artifact], judge: type[t.Artifact]) -> list[Any]:
    """The columns of a Contestant, in the order of its fields."""
    return [
        alias.id, alias.name, alias.kind, alias.snapshot_id, weights.digest, judge.digest,
        alias.k, alias.url, alias.model, alias.key_variable, alias.group_id,
    ]  # fmt: skip


def _joined() -> tuple[type[t.Contestant], type[t.Artifact], type[t.Artifact]]:
    return aliased(t.Contestant), aliased(t.Artifact), aliased(t.Artifact)


# Statements are built once: building costs more than running, and every pair that is drawn runs one.
_A, _B, _ONE = _joined(), _joined(), _joined()
_WIDTH = len(fields(Contestant))
_PAIRINGS = (
    select(
        t.Pairing.id,
        t.Pairing.task,
        t.Pairing.weight,
        t.Pairing.cycle_id,
        *(
            column.label(f"{side}_{number}")
            for side, joined in (("a", _A), ("b", _B))
            for number, column in enumerate(_columns(*joined))
        ),
    )
    .join(_A[0], _A[0].id == t.Pairing.contestant_a_id)
    .outerjoin(_A[1], _A[1].id == _A[0].snapshot_id)
    .outerjoin(_A[2], _A[2].id == _A[0].preference_model_id)
    .join(_B[0], _B[0].id == t.Pairing.contestant_b_id)
    .outerjoin(_B[1], _B[1].id == _B[0].snapshot_id)
    .outerjoin(_B[2], _B[2].id == _B[0].preference_model_id)
    .order_by(t.Pairing.id)
)
_ACTIVE = _PAIRINGS.where(t.Pairing.ended_at.is_(None))
_LIVE_ROW = LIVE.cte("live")
_TASK_PAIRINGS = _ACTIVE.where(t.Pairing.task == bindparam("task")).subquery("pairings")
# The live deployment is a single row, so this is the list of pairings beside it, or it alone.
_DRAWABLE = select(_LIVE_ROW, _TASK_PAIRINGS).join(_TASK_PAIRINGS, true(), isouter=True)
_CONTESTANTS = (
    select(*_columns(*_ONE))
    .outerjoin(_ONE[1], _ONE[1].id == _ONE[0].snapshot_id)
    .outerjoin(_ONE[2], _ONE[2].id == _ONE[0].preference_model_id)
    .order_by(_ONE[0].id)
)


def drawable(session: Session, task: str) -> tuple[LiveDeployment | None, list[ActivePairing]]:
    """The live deployment and the active pairings of a task, in one query: every pair that is drawn asks for them."""
    rows = session.execute(_DRAWABLE, {"task": task}).all()
    if not rows:
        return None, active_pairings(session, task)
    width = len(fields(LiveDeployment))
    return LiveDeployment(*rows[0][:width]), [_pairing(row[width:]) for row in rows if row[width] is not None]


def active_pairings(session: Session, task: str | None = None) -> list[ActivePairing]:
    """The rows of the pairing table in force, oldest first; of one task where it is given."""
    query = _ACTIVE if task is None else _ACTIVE.where(t.Pairing.task == task)
    return [_pairing(row) for row in session.execute(query)]


def pairing_figures(session: Session, limit: int = 100) -> list[PairingFigures]:
    """Pairings in force and ended ones with what each brought; those in force first, the newest first."""
    complete = (
        select(func.count(t.Candidate.text) == 2)
        .where(t.Candidate.pair_id == t.Pair.id)
        .correlate(t.Pair)
        .scalar_subquery()
    )
    # Which side of the pair was the pairing's contestant a: by contestant, else by weights.
    side_a = aliased(t.Candidate)
    contestant_a = aliased(t.Contestant)
    a_side = (
        select(side_a.side)
        .where(
            side_a.pair_id == t.Pair.id,
            (side_a.contestant_id == contestant_a.id)
            | ((contestant_a.kind == "policy") & (side_a.snapshot_id == contestant_a.snapshot_id)
               & side_a.contestant_id.is_(None)),
        )
        .order_by(side_a.side)
        .limit(1)
        .correlate(t.Pair, contestant_a)
        .scalar_subquery()
    )  # fmt: skip
    brought = (
        select(
            t.Pair.pairing_id,
            t.Pair.id,
            complete.label("complete"),
            a_side.label("a_side"),
            t.Comparison.side,
        )
        .join(t.Pairing, t.Pairing.id == t.Pair.pairing_id)
        .join(contestant_a, contestant_a.id == t.Pairing.contestant_a_id)
        .outerjoin(t.Comparison, t.Comparison.pair_id == t.Pair.id)
        .subquery()
    )
    decided = brought.c.side.in_(("a", "b"))
    counts = {
        row.pairing_id: row
        for row in session.execute(
            select(
                brought.c.pairing_id,
                func.count(brought.c.id.distinct()).label("pairs"),
                func.count(brought.c.id.distinct()).filter(brought.c.complete).label("complete"),
                func.count(brought.c.side).label("compared"),
                func.count().filter(decided, brought.c.side == brought.c.a_side).label("won_a"),
                func.count().filter(decided, brought.c.side != brought.c.a_side).label("won_b"),
                func.count().filter(brought.c.side == "none").label("undecided"),
            ).group_by(brought.c.pairing_id)
        )
    }
    query = _PAIRINGS.add_columns(t.Pairing.created_at, t.Pairing.ended_at).order_by(None)
    rows = session.execute(query.order_by(t.Pairing.ended_at.isnot(None), t.Pairing.id.desc()).limit(limit))
    found = []
    for row in rows:
        count = counts.get(row.id)
        numbers = (0,) * 6 if count is None else tuple(count)[1:]
        found.append(PairingFigures(_pairing(row[:-2]), row.created_at, row.ended_at, *numbers))
    return found


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


def open_pairing(
    session: Session, task: str, a_id: int, b_id: int, cycle_id: int | None = None, weight: float = 1.0
) -> t.Pairing:
    """Let two contestants meet in a task from now on; one that is in force already is returned as it is.

    Raises:
        ContestantError: there is no such task, or the weight is not above 0 and finite.
    """
    if task not in get_args(TaskName):
        raise ContestantError(f"There is no task {task!r}; expected one of: {', '.join(get_args(TaskName))}.")
    if not 0 < weight <= 1e6:
        raise ContestantError(f"The pairing's weight is {weight}; expected a number above 0, at most a million.")
    kept = session.execute(
        select(t.Pairing)
        .where(
            t.Pairing.task == task,
            t.Pairing.contestant_a_id == a_id,
            t.Pairing.contestant_b_id == b_id,
            t.Pairing.cycle_id.is_not_distinct_from(cycle_id),
            t.Pairing.weight == weight,
            t.Pairing.ended_at.is_(None),
        )
        .limit(1)
    ).scalar_one_or_none()
    if kept is not None:
        return kept
    pairing = t.Pairing(task=task, contestant_a_id=a_id, contestant_b_id=b_id, cycle_id=cycle_id, weight=weight)
    session.add(pairing)
    session.flush()
    return pairing


def end_pairing(session: Session, pairing_id: int) -> None:
    """Take a row of the pairing table out of force; what it brought stays."""
    pairing = session.get(t.Pairing, pairing_id, with_for_update=True)
    if pairing is None:
        raise ContestantError(f"There is no pairing {pairing_id}. `orchestrator pairing list` shows those there are.")
    if pairing.ended_at is None:
        pairing.ended_at = datetime.now(UTC)
        session.flush()


@dataclass(frozen=True)
class Served:
    """Digests of what the policy server must hold."""

    policies: frozenset[str]
    preference_models: frozenset[str]


def served(session: Session) -> Served:
    """What raters may be given: the live snapshot, and what the contestants of active pairings are made of."""
    live = live_deployment(session)
    meeting = [one for pairing in active_pairings(session) for one in (pairing.a, pairing.b)]
    return Served(
        frozenset({live.digest} if live else set()) | {one.digest for one in meeting if one.digest},
        frozenset(one.preference_model for one in meeting if one.preference_model),
    )


def _pairing(row: Sequence[Any]) -> ActivePairing:
    a, b = row[4 : 4 + _WIDTH], row[4 + _WIDTH : 4 + 2 * _WIDTH]
    return ActivePairing(row[0], row[1], row[2], row[3], Contestant(*a), Contestant(*b))


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
