"""What a person does to what is live: go back, put a policy live by hand. The same for command, desk and Prefect.

The policy server loads and checks the policy before anything is written, where it answers; where it doesn't, the row is
written all the same, and the server follows it when it is back: one must be able to go back from a policy that keeps
the server down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sqlalchemy.orm import Session

from orchestrator.cycles.telling import Database
from orchestrator.errors import ServiceUnavailable
from orchestrator.instance.policy_api import PolicyApi, Unusable
from orchestrator.store import deployments
from orchestrator.store.acts import Actor, reason_of
from orchestrator.store.deployments import Candidacy

Choose = Callable[[Session], Candidacy]
LATER = " The policy server does not answer; it takes the policy up when it is back."


def roll_back(
    database: Database,
    policy: PolicyApi | None,
    actor: Actor,
    why: str,
    *,
    digest: str | None = None,
    cycle: int | None = None,
) -> str:
    """Go back to what was live before, or to the policy or the cycle that is named; returns what was done, in words.

    Raises:
        CycleError: there is nothing to go back to, or something else went live meanwhile.
        Unusable: the policy server can't serve it; nothing is changed.
    """

    def choose(session: Session) -> Candidacy:
        return deployments.to_roll_back_to(session, digest, cycle)

    return _put_live(database, policy, choose, actor, why, "roll_back")


def promote_by_hand(database: Database, policy: PolicyApi | None, actor: Actor, why: str, digest: str) -> str:
    """Put any policy there is live; returns what was done, in words. Raises as `roll_back`."""
    return _put_live(database, policy, lambda session: deployments.to_promote(session, digest), actor, why, "by_hand")


def _put_live(
    database: Database,
    policy: PolicyApi | None,
    choose: Choose,
    actor: Actor,
    why: str,
    kind: Literal["roll_back", "by_hand"],
) -> str:
    reason_of(why)
    with database() as session:
        chosen = choose(session)
    away = policy is None or not _answers(lambda: policy.load(chosen.digest))
    with database() as session:
        deployments.put_live(session, chosen, actor, why, kind)
    if policy is not None and not away:
        away = not _answers(policy.follow)
    return f"Policy {chosen.digest[:19]} is live." + (LATER if policy is not None and away else "")


def _answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except Unusable:
        raise
    except ServiceUnavailable:
        return False
    return True
