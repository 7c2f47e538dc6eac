"""What people do to the loop from a form: decide about a promotion, go back, put a policy live. And what time does.

Each writes its row first and then does what follows from it; run again, it goes on from there. `python -m
flows.deciding --cycle N` carries out a decision in this process, without a Prefect server.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from flows.command_line import exit_status, printing
from flows.ending import end_cycle, seen_at_work, telling_what_is_live
from flows.reporting import report_what_people_said
from flows.running import OnPools, Runner
from flows.states import as_state, told_in_a_line
from flows.tidying import NOTHING_TO_DO, remove_idle_runs
from orchestrator import stages
from orchestrator.cycles import steering
from orchestrator.cycles.deciding import cycle_state, expire, take_decision, to_finish
from orchestrator.cycles.outcomes import WAITING, Outcome
from orchestrator.cycles.record import cycle_id_of
from orchestrator.cycles.turn import one_at_a_time
from orchestrator.database import database
from orchestrator.errors import CycleCancelled, OrchestratorError
from orchestrator.instance.policy_api import policy_api
from orchestrator.store.acts import LONGEST_NAME, LONGEST_REASON, claimed

Reason = Annotated[str, Field(min_length=1, max_length=LONGEST_REASON)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Number = Annotated[int, Field(ge=0)]


@flow(name="decide-promotion", flow_run_name="cycle {cycle}: {decision}, by {name}")
@told_in_a_line(OrchestratorError)
async def decide_promotion(cycle: Number, decision: Literal["promote", "refuse"], reason: Reason, name: Name) -> State:
    """Say whether the snapshot of a cycle that waits for approval goes live, and carry it out.

    Args:
        cycle: Number of the cycle that waits, as its runs are named: 4 for "cycle 4: …".
        decision: promote puts its snapshot before people, refuse leaves the live policy where it is.
        reason: Why, in a sentence. It stands on the record and in the cycle's report.
        name: Who you are. It is recorded as claimed, as Prefect knows no users; at the desk it is proven.
    """
    run = OnPools()
    await run.ask(take_decision, cycle, decision, claimed(name), reason)
    return as_state(await finish(run, await run.ask(cycle_id_of, cycle)))


@flow(name="finish-cycle", flow_run_name="finish cycle {cycle}")
@told_in_a_line(OrchestratorError)
async def finish_cycle(cycle: Number) -> State:
    """Carry out a decision that was taken at the desk or by a command: promote or refuse, report, close.

    Args:
        cycle: Number of the cycle that was decided about.
    """
    run = OnPools()
    return as_state(await finish(run, await run.ask(cycle_id_of, cycle)))


@flow(name="expire-approvals", flow_run_name="look for what nobody decided")
async def expire_approvals() -> State:
    """Refuse what nobody decided in time, finish what was decided, and report what people said since.

    It keeps the artifact `live` up to date too. Where it finds nothing to do it takes the earlier runs that found
    nothing out of the list of runs, so that there is one of them.
    """
    run, done = OnPools(), list[str]()
    done += [f"Refused because nobody decided: {cycle}." for cycle in await run.ask(expire)]
    async with telling_what_is_live(run):
        for cycle_id in await run.ask(to_finish):
            outcome = await finish(run, cycle_id)
            done.append(f"{outcome.name}. {outcome.message}")
        done += _reported(await report_what_people_said(run, at_once=False))
    if done:
        return Completed(message=" ".join(done))
    await remove_idle_runs()
    return Completed(name=NOTHING_TO_DO, message="Nothing waited too long, and people said nothing new.")


@flow(name="measure-elo", flow_run_name="what people said since")
async def measure_elo() -> State:
    """Measure what people said of earlier snapshots now, and write their reports anew.

    By itself this happens when people have paused for ten minutes, or once an hour while they go on.
    """
    said = _reported(await report_what_people_said(OnPools(), at_once=True))
    return Completed(message=said[0]) if said else Completed(name=NOTHING_TO_DO, message="People said nothing new.")


def _reported(numbers: list[int]) -> list[str]:
    cycles = ", ".join(f"cycle {number}" for number in numbers)
    return [f"Reported what people said since: {cycles}."] if numbers else []


@flow(name="roll-back", flow_run_name="roll back, by {name}")
@told_in_a_line(OrchestratorError)
async def roll_back(reason: Reason, name: Name, policy: str | None = None, cycle: Number | None = None) -> State:
    """Go back to what was live before: policy, preference model and template together, within seconds.

    Args:
        reason: Why, in a sentence. It stands on the record.
        name: Who you are. It is recorded as claimed, as Prefect knows no users; at the desk it is proven.
        policy: Digest, or its beginning, of a policy that was live (the desk has them); empty for the one before.
        cycle: Or the number of the cycle to go back to; empty for the policy before.
    """
    run = OnPools()
    async with telling_what_is_live(run):
        act = partial(steering.roll_back, database, policy_api(), claimed(name), reason, digest=policy, cycle=cycle)
        return Completed(name="Rolled back", message=await run.ask(act))


@flow(name="promote-policy", flow_run_name="promote {policy}, by {name}")
@told_in_a_line(OrchestratorError)
async def promote_policy(policy: Annotated[str, Field(min_length=6)], reason: Reason, name: Name) -> State:
    """Put any snapshot there is live, past ones and those that were never live alike.

    Args:
        policy: Digest, or its beginning, of the snapshot; the desk lists them under Live.
        reason: Why, in a sentence. It stands on the record.
        name: Who you are. It is recorded as claimed, as Prefect knows no users; at the desk it is proven.
    """
    run = OnPools()
    async with telling_what_is_live(run):
        act = partial(steering.promote_by_hand, database, policy_api(), claimed(name), reason, policy)
        return Completed(name="Promoted by hand", message=await run.ask(act))


BY_HAND: tuple[Flow[..., Any], ...] = (decide_promotion, finish_cycle, roll_back, promote_policy, measure_elo)
"""Flows that a person starts; each has a Prefect deployment of its own name."""
EXPIRY_CRON = "*/10 * * * *"


async def finish(run: Runner, cycle_id: int) -> Outcome:
    """Carry out what was decided about a cycle; a cycle that is over, or waits, stays as it is."""
    try:
        # The run that asked may be at its end still.
        async with one_at_a_time("queue", run.queued):
            decided = await run.ask(stages.what_was_decided, cycle_id)
            if decided is None:
                return await run.ask(_as_it_stands, cycle_id)
            async with seen_at_work(run, cycle_id, "decision"):
                return await end_cycle(run, cycle_id, decided)
    except CycleCancelled as cancelled:
        return Outcome("Cancelled", str(cancelled))


def _as_it_stands(cycle_id: int) -> Outcome:
    state = cycle_state(cycle_id)
    if state == "open":
        return Outcome(WAITING, stages.what_waits(cycle_id))
    word = "Cancelled" if state == "failed" else state.capitalize()
    return Outcome(word, f"The cycle is {state} already; nothing was left to do.")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and finish a cycle here."""
    parser = argparse.ArgumentParser(prog="orchestrator cycle decide")
    parser.add_argument("--cycle", type=int, required=True)
    args = parser.parse_args(argv)

    def work() -> None:
        outcome = asyncio.run(finish(printing(), cycle_id_of(args.cycle)))
        print(f"{outcome.name}. {outcome.message}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
