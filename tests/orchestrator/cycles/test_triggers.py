"""A run that meets another run, or a cycle that is in its way: refused, queued, blocked, and what it says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import transaction
from flows.cycle import turn
from flows.running import InProcess
from orchestrator.config import CycleConfig, parse_config
from orchestrator.cycles.outcomes import TYPES, WAITING, Outcome, ended_as_it_should
from orchestrator.cycles.record import open_cycle
from orchestrator.cycles.turn import MAX_QUEUED, one_at_a_time
from orchestrator.errors import CycleBusy


@pytest.fixture(autouse=True)
def _instance(home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("ORCHESTRATOR_POLICY_URL", raising=False)


def configuration(**cycle: Any) -> CycleConfig:
    return parse_config({"name": "small", "initial_policy": {"path": "/no/such"}, "cycle": cycle})


class Queue:
    """Runs that hold the cycle one after the other, each until it is let go."""

    def __init__(self) -> None:
        self.said: list[str | None] = []
        self.began: list[str] = []
        self.may_end: dict[str, asyncio.Event] = {}

    async def say(self, line: str | None) -> None:
        self.said.append(line)

    async def run(self, name: str, second_trigger: str = "queue") -> None:
        self.may_end[name] = asyncio.Event()
        async with one_at_a_time(second_trigger, self.say):
            self.began.append(name)
            await self.may_end[name].wait()

    async def until(self, number: int, what: list[Any]) -> None:
        async with asyncio.timeout(60):
            while len(what) < number:
                await asyncio.sleep(0.01)


def test_a_second_run_is_refused_and_says_what_is_in_progress() -> None:
    async def both() -> None:
        queue = Queue()
        first = asyncio.create_task(queue.run("first"))
        await queue.until(1, queue.began)
        with pytest.raises(
            CycleBusy, match=r"^Another run of the cycle is in progress\. Nothing was begun: run this again when"
        ):
            await queue.run("second", "refuse")
        open_cycle(configuration())
        with pytest.raises(CycleBusy, match=r"^Cycle 1 is in progress, since \d{4}-"):
            await queue.run("second", "refuse")
        queue.may_end["first"].set()
        await first
        # Free again.
        queue.may_end.clear()
        third = asyncio.create_task(queue.run("third", "refuse"))
        await queue.until(2, queue.began)
        queue.may_end["third"].set()
        await third

    asyncio.run(both())


def test_queued_runs_go_first_come_first_served_and_no_more_than_so_many() -> None:
    async def all_of_them() -> None:
        queue, tasks = Queue(), []
        names = ["first", *(f"queued {number}" for number in range(MAX_QUEUED))]
        tasks.append(asyncio.create_task(queue.run(names[0])))
        await queue.until(1, queue.began)
        for number, name in enumerate(names[1:], 1):
            tasks.append(asyncio.create_task(queue.run(name)))
            await queue.until(number, queue.said)
            assert str(queue.said[-1]).endswith("This run begins when that one has ended.")
            await waiting_in_postgres(number)
        with pytest.raises(CycleBusy, match=rf"{MAX_QUEUED} runs wait for its end already"):
            await queue.run("one too many")
        # Whoever is ended while it waits leaves the queue.
        tasks[2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[2]
        for number, name in enumerate([names[0], names[1], names[3]], 1):
            await queue.until(number, queue.began)
            queue.may_end[name].set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert queue.began == [names[0], names[1], names[3]]
        assert queue.said[MAX_QUEUED:] == [None, None]

    asyncio.run(asyncio.wait_for(all_of_them(), 90))


async def waiting_in_postgres(number: int) -> None:
    from sqlalchemy import text

    from orchestrator.database import database

    def count() -> int:
        with database() as session:
            return int(session.execute(text("select count(*) from pg_locks where not granted")).scalar_one())

    async with asyncio.timeout(60):
        while await asyncio.to_thread(count) < number:
            await asyncio.sleep(0.01)


class Scheduled(InProcess):
    """A run that the schedule began."""

    async def scheduled(self) -> bool:
        return True


def test_a_run_in_whose_way_a_cycle_stands_ends_as_blocked(engine: Engine) -> None:
    open_cycle(configuration())
    # Its model is not there either; what is in the way comes first.
    for runner in (InProcess, Scheduled):
        outcome = asyncio.run(turn(configuration(min_comparisons=3), runner([].append)))
        assert (outcome.name, outcome.type, outcome.as_it_should) == ("Blocked", "FAILED", False)
        assert "with another configuration (they differ in cycle.min_comparisons)" in outcome.message
        assert "`orchestrator cycle cancel 1` (in the Prefect UI: `cancel-cycle`, cycle 1)" in outcome.message


def test_only_a_scheduled_run_gives_an_abandoned_cycle_up(engine: Engine) -> None:
    open_cycle(configuration())
    # A second without anything is enough.
    other = configuration(min_comparisons=3, abandon_after_hours=1e-9)
    with transaction(engine) as session:
        initial = t.Artifact(kind="initial_policy", fingerprint="f", digest=f"sha256:{0:064}", num_bytes=1,
                             settings={}, results={})  # fmt: skip
        session.add(initial)
        session.flush()
        decision = t.Decision(snapshot_id=initial.id, decision="promote", reasons=[], evidence={}, decided_by="gates")
        session.add(decision)
        session.flush()
        session.add(t.Deployment(snapshot_id=initial.id, decision_id=decision.id))
    said: list[str] = []
    assert asyncio.run(turn(other, InProcess(said.append))).name == "Blocked"
    assert said == []
    assert asyncio.run(turn(other, Scheduled(said.append))).name == "Skipped: 0 of 3"
    assert said[0].startswith("Cycle 1 is given up by itself: nothing came of it since ")
    with Session(engine) as session:
        assert session.scalars(select(t.Cycle.state)).one() == "cancelled"


@pytest.mark.parametrize("name", sorted(TYPES))
def test_each_end_has_a_word_of_its_own_and_green_means_that_what_was_wanted_is_done(name: str) -> None:
    green = {"Promoted", "Week 0", "Stage done"}
    assert (Outcome(name, "").type == "COMPLETED") == (name in green)
    assert Outcome(name, "").as_it_should == (name in green | {"Refused", "Skipped", WAITING})


def test_figures_after_the_word_change_neither_colour_nor_meaning() -> None:
    assert Outcome("Skipped: 30 of 40", "").type == "CANCELLED"
    assert ended_as_it_should("CANCELLED", "Skipped: 30 of 40")
    # Prefect's own.
    assert ended_as_it_should("COMPLETED", "Completed")
    assert not ended_as_it_should("CRASHED", "Crashed")
