"""Who may do what: groups of raters, queues of work, and what a rater is offered because of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from sqlalchemy import Select, bindparam, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import OrchestratorError
from orchestrator.people.raters import RaterIdentity, get_rater
from orchestrator.people.tasks import TASKS, Question, TaskName

Offer = tuple[TaskName, Question]

EVERYTHING: tuple[Offer, ...] = tuple(
    (task, question) for task in get_args(TaskName) for question in TASKS[task].questions
)
"""Every kind of work there is: a task and what its pairs ask."""
STATUSES = ("select", "normal")

_IS_MEMBER = exists().where(
    t.GroupMembership.group_id == t.Queue.group_id,
    t.GroupMembership.rater_id == bindparam("rater_id"),
    t.GroupMembership.ended_at.is_(None),
)
_NUM_TOWARDS_GOAL = (
    select(func.count(t.Comparison.id))
    .join(t.Pair, t.Pair.id == t.Comparison.pair_id)
    .join(t.Dialogue, t.Dialogue.id == t.Pair.dialogue_id)
    .where(
        t.Dialogue.task == t.Queue.task,
        t.Pair.question == t.Queue.question,
        t.Comparison.created_at >= t.Queue.created_at,
    )
    .correlate(t.Queue)
    .scalar_subquery()
)
# Built once: part of each home page and of each new dialogue.
_OFFERED = (
    select(t.Queue.task, t.Queue.question)
    .where(
        t.Queue.ended_at.is_(None),
        or_(t.Queue.group_id.is_(None), _IS_MEMBER),
        or_(t.Queue.rater_status.is_(None), t.Queue.rater_status == bindparam("status")),
        or_(t.Queue.goal.is_(None), t.Queue.goal > _NUM_TOWARDS_GOAL),
    )
    .order_by(t.Queue.weight.desc(), t.Queue.id)
)
_ANY_QUEUE = select(exists().select_from(t.Queue))
_MODELS_MEET = select(exists().where(t.Pairing.task == "model_comparison", t.Pairing.ended_at.is_(None)))


class QueueError(OrchestratorError):
    """A group or queue does not exist, exists already, or can't be as asked."""


def offers(session: Session, rater: RaterIdentity) -> list[Offer]:
    """What the rater may begin, heaviest queue first. As long as no queue was ever added, everything.

    Once there are queues they are all that is offered, so that closing the last one stops the work, not opens it.
    """
    found = session.execute(_OFFERED, {"rater_id": rater.id, "status": rater.status}).all()
    if not found and not session.execute(_ANY_QUEUE).scalar_one():
        return list(EVERYTHING)
    # Two queues may offer the same work to two groups; a rater of both sees it once.
    return list(dict.fromkeys((row.task, row.question) for row in found))


def offers_at_home(session: Session, rater: RaterIdentity) -> list[Offer]:
    """What the home page lists: everything offered, but models for comparison only where some meet.

    Two replies of the one live policy would not say who is better. A queue that asks for them all the same is heeded.
    """
    offered = offers(session, rater)
    if session.execute(_ANY_QUEUE).scalar_one() or session.execute(_MODELS_MEET).scalar_one():
        return offered
    return [(task, question) for task, question in offered if task != "model_comparison"]


def add_group(session: Session, name: str) -> t.RaterGroup:
    """Add an empty group."""
    if not name.strip() or len(name) > 100:
        raise QueueError(f"Group name {name!r} is not usable: give 1 to 100 characters.")
    if session.execute(select(t.RaterGroup.id).where(t.RaterGroup.name == name)).first() is not None:
        raise QueueError(f"Group {name!r} exists already. `orchestrator group list` shows those there are.")
    group = t.RaterGroup(name=name)
    session.add(group)
    session.flush()
    return group


def get_group(session: Session, name: str) -> t.RaterGroup:
    """The group of that name; QueueError where there is none."""
    group = session.execute(select(t.RaterGroup).where(t.RaterGroup.name == name)).scalar_one_or_none()
    if group is None:
        raise QueueError(f"There is no group {name!r}. Add it with `orchestrator group add NAME`.")
    return group


def join_group(session: Session, name: str, handle: str) -> None:
    """Put a rater into a group; already in it is no error."""
    group, rater = get_group(session, name), get_rater(session, handle)
    if session.execute(_membership(group, rater)).first() is None:
        session.add(t.GroupMembership(rater_id=rater.id, group_id=group.id))
        session.flush()


def leave_group(session: Session, name: str, handle: str) -> None:
    """Take a rater out of a group; that the rater was in it stays on record."""
    group, rater = get_group(session, name), get_rater(session, handle)
    membership = session.execute(_membership(group, rater)).scalar_one_or_none()
    if membership is None:
        raise QueueError(f"Rater {handle!r} is not in group {name!r}.")
    session.execute(
        update(t.GroupMembership).where(t.GroupMembership.id == membership.id).values(ended_at=func.clock_timestamp())
    )


def add_queue(
    session: Session,
    task: str,
    question: str,
    *,
    group: str | None = None,
    status: str | None = None,
    weight: int = 1,
    goal: int | None = None,
) -> t.Queue:
    """Open a queue of work.

    Raises:
        QueueError: the task does not ask that, the group or status is unknown, or weight or goal is below 1.
    """
    if (task, question) not in EVERYTHING:
        known = ", ".join(" ".join(offer) for offer in EVERYTHING)
        raise QueueError(f"Task {task!r} does not ask what is {question!r}; expected one of: {known}.")
    if status is not None and status not in STATUSES:
        raise QueueError(f"Status {status!r} can't be given work; expected {' or '.join(STATUSES)}.")
    for name, value in (("weight", weight), ("goal", goal)):
        if value is not None and not 1 <= value < 2**63:
            raise QueueError(f"The queue's {name} is {value}; expected at least 1 and less than 2^63.")
    group_id = get_group(session, group).id if group is not None else None
    queue = t.Queue(task=task, question=question, group_id=group_id, rater_status=status, weight=weight, goal=goal)
    session.add(queue)
    session.flush()
    return queue


def close_queue(session: Session, queue_id: int) -> None:
    """Offer nothing from this queue any more; dialogues that are open go on."""
    queue = session.get(t.Queue, queue_id, with_for_update=True)
    if queue is None:
        raise QueueError(f"There is no queue {queue_id}. `orchestrator queue list` shows those there are.")
    if queue.ended_at is None:
        session.execute(update(t.Queue).where(t.Queue.id == queue_id).values(ended_at=func.clock_timestamp()))


@dataclass(frozen=True)
class QueueFigures:
    """A queue and what it brought."""

    id: int
    task: TaskName
    question: Question
    group: str | None
    status: str | None
    weight: int
    goal: int | None
    comparisons: int
    """Of its kind of work since it was opened, by whomever."""
    ended_at: datetime | None


@dataclass(frozen=True)
class GroupMembers:
    """A group and who is in it now."""

    name: str
    handles: tuple[str, ...]


def queue_figures(session: Session, limit: int = 100) -> list[QueueFigures]:
    """Queues with what each brought; open ones first, the newest first."""
    rows = session.execute(
        select(
            t.Queue.id,
            t.Queue.task,
            t.Queue.question,
            t.RaterGroup.name,
            t.Queue.rater_status,
            t.Queue.weight,
            t.Queue.goal,
            _NUM_TOWARDS_GOAL,
            t.Queue.ended_at,
        )
        .outerjoin(t.RaterGroup, t.RaterGroup.id == t.Queue.group_id)
        .order_by(t.Queue.ended_at.isnot(None), t.Queue.id.desc())
        .limit(limit)
    )
    return [QueueFigures(*row) for row in rows]


def group_members(session: Session) -> list[GroupMembers]:
    """Every group with the handles of who is in it now."""
    now = t.GroupMembership.ended_at.is_(None)
    rows = session.execute(
        select(t.RaterGroup.name, func.array_agg(aggregate_order_by(t.Rater.handle, t.Rater.handle)).filter(now))
        .outerjoin(t.GroupMembership, t.GroupMembership.group_id == t.RaterGroup.id)
        .outerjoin(t.Rater, t.Rater.id == t.GroupMembership.rater_id)
        .group_by(t.RaterGroup.id)
        .order_by(t.RaterGroup.id)
    )
    return [GroupMembers(name, tuple(handles or ())) for name, handles in rows]


def _membership(group: t.RaterGroup, rater: t.Rater) -> Select[t.GroupMembership]:
    return select(t.GroupMembership).where(
        t.GroupMembership.group_id == group.id,
        t.GroupMembership.rater_id == rater.id,
        t.GroupMembership.ended_at.is_(None),
    )
