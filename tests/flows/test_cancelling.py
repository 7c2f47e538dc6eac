"""Cancelling through a real Prefect server: a run, a cycle in a terminal, a cycle in the UI; and what is in the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.instance.prefect_api import FlowRunState, PrefectApi
from orchestrator.instance.up import Instance
from tests.flows.kills import job_of
from tests.flows.tiny_cycle import Orchestrator, begin
from tests.waiting import wait_for

Start = Callable[..., str]
# Long enough that no training can end by itself before the cancellation reaches it.
LONG = ("--set", "ppo.iterations=600")


@pytest.fixture
def api(instance: Instance) -> PrefectApi:
    return PrefectApi(instance.prefect_api_url)


@pytest.fixture
def start(orchestrator: Orchestrator, config_file: Path) -> Start:
    """Start a run of the cycle and give its id, without waiting for it."""

    def run(*options: str) -> str:
        printed = orchestrator("cycle", "run", "--no-wait", "--config", str(config_file), *options)
        return printed.strip().rpartition("/")[2]

    return run


def ended(api: PrefectApi, run_id: str, timeout_s: float = 120) -> FlowRunState:
    wait_for(f"the run {run_id} to end", lambda: api.state(run_id).ended, timeout_s)
    return api.state(run_id)


def rows(instance: Instance, number: int) -> dict[str, int]:
    """What a cycle decided and put live, and the stages that began or ended after it had ended."""
    engine = create_engine(instance.database_url)
    with Session(engine) as session:
        cycle = session.scalars(select(t.Cycle).where(t.Cycle.number == number)).one()
        late = (t.Stage.started_at > cycle.ended_at) | (t.Stage.ended_at > cycle.ended_at)
        tables = {"decisions": t.Decision, "deployments": t.Deployment, "pairings": t.Pairing}
        found = {
            name: session.scalars(
                select(func.count()).select_from(table).where(table.cycle_id == cycle.id)  # type: ignore[attr-defined]
            ).one()
            for name, table in tables.items()
        }
        query = select(func.count()).select_from(t.Stage).where(t.Stage.cycle_id == cycle.id, late)
        found["late stages"] = session.scalars(query).one()
    engine.dispose()
    return found


def cycle_of(orchestrator: Orchestrator, number: int) -> dict[str, Any]:
    cycles = json.loads(orchestrator("cycle", "list", "--json"))
    return next(cycle for cycle in cycles if cycle["cycle"] == number)


NOTHING = {"decisions": 0, "deployments": 0, "pairings": 0, "late stages": 0}


@pytest.mark.slow
def test_a_cycle_that_is_given_up_while_it_trains_ends_within_seconds_and_promotes_nothing(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path, api: PrefectApi, start: Start
) -> None:
    number = begin(orchestrator, config_file, tmp_path, 11)
    run_id = start("--set", "seed=0", *LONG)
    wait_for("the job of train_policy", lambda: job_of(instance.home, "train_policy") is not None, 300)
    asked_s = time.monotonic()
    printed = orchestrator("cycle", "cancel", str(number), "--note", "the labels are turned round")
    # Its import is part of this; the job's own end is not longer than that.
    assert job_of(instance.home, "train_policy") is None
    print(f"{time.monotonic() - asked_s:.1f} s\n{printed}")
    lines = printed.splitlines()
    assert lines[0] == f"Cycle {number} is cancelled: from now on nothing of it is written."
    runs, at_work = (f"cycle {number}: tiny", f"cycle {number}: tiny, train policy"), ("cycle run", "train_policy")
    assert {f"run asked to end: {run}" for run in runs} | {f"run cancelled: {run}" for run in runs} <= set(lines)
    assert {f"at work, and told to end: {name}" for name in at_work} <= set(lines)
    assert {f"has ended: {name}" for name in at_work} <= set(lines)
    assert lines[-1].startswith("Nothing works on it any more.")
    state = ended(api, run_id)
    assert (state.type, state.name) == ("CANCELLED", "Cancelled")
    wait_for("the word of the state", lambda: "the labels are turned round" in api.state(run_id).message)
    assert rows(instance, number) == NOTHING
    note = str(cycle_of(orchestrator, number)["note"])
    assert note.startswith("Cancelled by ")
    assert note.endswith("(user of that machine): the labels are turned round")
    # The command says what it found where there is nothing to end any more.
    assert "Nothing works on it any more." in orchestrator("cycle", "cancel", str(number))
    assert "is promoted; only an open cycle" in orchestrator("cycle", "cancel", "0", status=2)


@pytest.mark.slow
def test_a_cancelled_run_names_the_open_cycle_what_is_in_its_way_is_blocked_and_the_form_gives_it_up(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path, api: PrefectApi, start: Start
) -> None:
    number = begin(orchestrator, config_file, tmp_path, 12)
    first = start("--set", "seed=0", *LONG)
    wait_for("the job of train_policy", lambda: job_of(instance.home, "train_policy") is not None, 300)

    # 1. A second trigger is refused, or queued, and says so.
    refused = ended(api, start("--set", "seed=0", *LONG))
    assert (refused.type, refused.name) == ("CANCELLED", "Not started")
    assert refused.message.startswith(f"Cycle {number} is in progress, since ")
    queued = start("--set", "seed=1", "--set", "cycle.second_trigger=queue")
    wait_for("the second run to be queued", lambda: api.state(queued).name == "Queued")
    assert api.state(queued).message.endswith("This run begins when that one has ended.")

    # 2. Cancelling the run in the UI leaves the cycle open, and says so; its job ends.
    api.cancel(first)
    state = ended(api, first)
    assert (state.type, state.name) == ("CANCELLED", "Cancelled")
    wait_for("its job to end", lambda: job_of(instance.home, "train_policy") is None)
    wait_for("the word of the state", lambda: "`cancel-cycle` in the Prefect UI" in api.state(first).message)
    assert api.state(first).message.startswith(f"This run is cancelled; cycle {number} is open all the same.")
    assert cycle_of(orchestrator, number)["state"] == "open"

    # 3. The queued run has another configuration, and says what is in its way.
    blocked = ended(api, queued)
    assert (blocked.type, blocked.name) == ("FAILED", "Blocked")
    assert (
        f"`orchestrator cycle cancel {number}` (in the Prefect UI: `cancel-cycle`, cycle {number})" in blocked.message
    )

    # 4. The form gives it up, while a run of it goes on.
    again = start("--set", "seed=0", *LONG)
    wait_for("the job of train_policy", lambda: job_of(instance.home, "train_policy") is not None, 300)
    form = api.start_run("cancel-cycle/cancel-cycle", {"cycle": number, "reason": "another plan", "name": "Anna"})
    told = ended(api, form)
    assert (told.type, told.name) == ("COMPLETED", "Cycle cancelled")
    assert f"run cancelled: cycle {number}: tiny, train policy." in told.message
    assert told.message.endswith("Its comparisons go into the next comparison set.")
    assert ended(api, again).name == "Cancelled"
    assert job_of(instance.home, "train_policy") is None
    assert rows(instance, number) == NOTHING
    assert cycle_of(orchestrator, number)["note"] == "Cancelled by Anna (as typed into a form): another plan"
