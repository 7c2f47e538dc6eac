"""Decisions about a cycle that waits, each in a transaction of its own: a person's, and that of time.

What a decision brings about is done by `flows/deciding.py`; `start_finishing` lets it.
"""

from __future__ import annotations

from db import tables as t
from orchestrator.database import database
from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.store import approvals
from orchestrator.store.acts import Actor
from orchestrator.store.approvals import Answer, decision_said

FINISH = "finish-cycle/finish-cycle"
"""The Prefect deployment that carries out what was decided elsewhere."""


def take_decision(cycle: int, answer: Answer, actor: Actor, why: str) -> str:
    """Write down what a person decided about the cycle with this number; returns it in words.

    Raises:
        CycleError: nothing waits there, or somebody has decided already.
    """
    with database() as session:
        return f"Cycle {cycle}: {decision_said(approvals.decide(session, cycle, answer, actor, why))}."


def expire() -> list[str]:
    """Refuse what nobody decided in time; returns what that was, in words."""
    with database() as session:
        return [f"cycle {one.cycle}" for one in approvals.expire(session)]


def to_finish() -> list[int]:
    """Open cycles, by id, that are decided about."""
    with database() as session:
        return approvals.decided_and_open(session)


def cycle_state(cycle_id: int) -> str:
    """`open`, or how the cycle ended."""
    with database() as session:
        return session.get_one(t.Cycle, cycle_id).state


def start_finishing(api: PrefectApi, cycle: int) -> str:
    """Let the Prefect deployment carry out what was decided; returns the flow run's id."""
    return api.start_run(FINISH, {"cycle": cycle})
