"""Queues of work: who is offered what, on the home page and when a dialogue is begun."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from sqlalchemy.orm import Session

from orchestrator import queues
from orchestrator.queues import EVERYTHING, QueueError
from orchestrator.raters import RaterIdentity, create_rater


def _rater(session: Session, handle: str) -> RaterIdentity:
    rater, _ = create_rater(session, handle)
    return RaterIdentity(rater.id, rater.handle, rater.status)


def test_a_queue_is_offered_to_its_group_alone_while_it_is_open(session: Session) -> None:
    ann, bob = _rater(session, "ann"), _rater(session, "bob")
    assert tuple(queues.offers(session, ann)) == EVERYTHING
    queues.add_group(session, "red team")
    queues.join_group(session, "red team", "ann")
    queues.add_queue(session, "helpful", "helpful")
    red = queues.add_queue(session, "red_team", "more_harmful", group="red team", weight=2, goal=1)
    queues.add_queue(session, "model_comparison", "harmless", status="select")
    assert queues.offers(session, ann) == [("red_team", "more_harmful"), ("helpful", "helpful")]
    assert queues.offers(session, bob) == [("helpful", "helpful")]
    queues.leave_group(session, "red team", "ann")
    assert queues.offers(session, ann) == [("helpful", "helpful")]
    queues.join_group(session, "red team", "ann")
    queues.close_queue(session, red.id)
    assert queues.offers(session, ann) == [("helpful", "helpful")]


def test_what_cannot_be_is_refused_in_words(session: Session) -> None:
    with pytest.raises(QueueError, match="does not ask what is 'harmless'"):
        queues.add_queue(session, "helpful", "harmless")
    with pytest.raises(QueueError, match="no group 'x'"):
        queues.add_queue(session, "helpful", "helpful", group="x")
    with pytest.raises(QueueError, match="goal is 0; expected at least 1"):
        queues.add_queue(session, "helpful", "helpful", goal=0)
    with pytest.raises(QueueError, match="no queue 99"):
        queues.close_queue(session, 99)


def test_a_dialogue_of_a_closed_queue_goes_on_but_no_other_begins(
    rater: httpx.Client, database: Callable[[], Session]
) -> None:
    first = {"task": "helpful", "client_key": "one"}
    begun = rater.post("/api/dialogues", json=first)
    with database() as session, session.begin():
        queues.add_queue(session, "red_team", "more_harmful")
    assert rater.post("/api/dialogues", json=first).json() == begun.json()
    refused = rater.post("/api/dialogues", json={"task": "helpful", "client_key": "two"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_offered")
