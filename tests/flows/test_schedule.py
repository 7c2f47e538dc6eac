"""One cycle a slot, by Prefect's own scheduler, on an instance whose clock is set forward (libfaketime)."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.healing import AUTOMATION
from flows.slots import PASSED_OVER
from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.instance.up import Instance
from tests.flows.kills import job_of
from tests.flows.prefect_calls import prefect
from tests.flows.tiny_cycle import run_command, write_comparisons
from tests.waiting import wait_for

# Debian's package `faketime`. The wrapper of that name is not needed: only clocks are set, no program is run by it.
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(LIBRARY is None, reason="no libfaketime (Debian's package faketime)"),
]
CRON = "30 2 * * 0"
"""Sundays at half past two in Berlin, where clocks jump from 2 to 3 on 28 March 2027, and from 3 to 2 on 31 October."""


class Clock:
    """The time that an instance's processes believe in; it goes on by itself."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def set(self, when: str) -> None:
        """Set it, e.g. to `2027-03-28 00:29:50`, UTC."""
        ahead_s = datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp() - time.time()
        self._file.write_text(f"{ahead_s:+.0f}\n")

    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time() + float(self._file.read_text()), UTC)


@pytest.fixture
def clock(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """For what is started from now on; Postgres, which would need the right to share it, has started already."""
    file = tmp_path / "clock"
    monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
    # The file is read again each second.
    monkeypatch.setenv("FAKETIME_CACHE_DURATION", "1")
    # What waits for a time span waits for a real one. Without the second, threads wait for Python's lock far too long.
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("FAKETIME_FORCE_MONOTONIC_FIX", "0")
    monkeypatch.setenv("FAKETIME_DISABLE_SHM", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("faked_clock")), prepend=os.pathsep)
    return Clock(file)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def weekly(config_file: Path, tmp_path: Path) -> Iterator[Path]:
    """The tiny cycle, on Sundays."""
    file = config_file.with_name("sundays.toml")
    file.write_text(config_file.read_text().replace("30 5 * * 2", CRON))
    yield file
    file.unlink()


def by_schedule(instance: Instance) -> list[tuple[str, str]]:
    """Slot and last state of each run that the scheduler made and that has ended, in order."""
    runs = PrefectApi(instance.prefect_api_url).flow_runs({"flows": {"name": {"any_": ["cycle"]}}, "limit": 200})
    ended = [
        run for run in runs if run["auto_scheduled"] and run["state_type"] not in ("SCHEDULED", "PENDING", "RUNNING")
    ]
    return sorted((run["expected_start_time"][:16].replace("T", " "), run["state_name"]) for run in ended)


def due(instance: Instance, clock: Clock) -> int:
    """How many runs of the schedule are waiting although their time has come."""
    found = prefect(
        instance,
        "POST",
        "/flow_runs/count",
        json={
            "flows": {"name": {"any_": ["cycle"]}},
            "flow_runs": {
                "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}},
                "expected_start_time": {"before_": clock.now().isoformat()},
            },
        },
    )
    return int(found.json())


def scheduled(instance: Instance, clock: Clock, slot: str) -> bool:
    found = PrefectApi(instance.prefect_api_url).flow_runs({"flow_runs": {"tags": {"all_": ["auto-scheduled"]}}})
    return any(run["expected_start_time"].startswith(slot.replace(" ", "T")) for run in found)


def wait_for_slots(instance: Instance, clock: Clock, slots: int) -> list[tuple[str, str]]:
    """What became of the slots so far, once so many have ended and no more is due."""
    wait_for("the slots", lambda: len(by_schedule(instance)) >= slots and due(instance, clock) == 0, 240)
    return by_schedule(instance)


def cycles(instance: Instance) -> int:
    return len(json.loads(run_command(instance.home, "cycle", "list", "--json")))


def test_slots_that_fell_due_while_the_server_was_down_are_one_cycle(
    database_url: str, clock: Clock, home: Path, weekly: Path
) -> None:
    clock.set("2027-01-01 12:00:00")
    with Instance(home, config=weekly, database_url=database_url) as instance:
        # Prefect plans three runs ahead.
        wait_for("the plan", lambda: scheduled(instance, clock, "2027-01-17 01:30"), 240)
    clock.set("2027-02-05 12:00:00")
    with Instance(home, database_url=database_url) as instance:
        late = wait_for_slots(instance, clock, 3)
        assert late == [
            ("2027-01-03 01:30", PASSED_OVER),
            ("2027-01-10 01:30", PASSED_OVER),
            ("2027-01-17 01:30", "Week 0"),
        ]
        assert cycles(instance) == 1
        # One slot missed, and a configuration given again with another schedule meanwhile.
        wait_for("the plan", lambda: scheduled(instance, clock, "2027-02-07 01:30"), 240)
    clock.set("2027-02-08 12:00:00")
    weekly.write_text(weekly.read_text().replace(CRON, "45 2 * * 0"))
    with Instance(home, config=weekly, database_url=database_url) as instance:
        assert wait_for_slots(instance, clock, 4)[3:] == [("2027-02-07 01:30", "Skipped: 0 of 40")]


def test_a_change_of_daylight_saving_takes_no_slot_twice(
    database_url: str, clock: Clock, home: Path, weekly: Path
) -> None:
    # In spring there is no half past two: Prefect runs at half past one, 00:30 UTC.
    clock.set("2027-03-27 12:00:00")
    with Instance(home, config=weekly, database_url=database_url) as instance:
        wait_for("the plan", lambda: scheduled(instance, clock, "2027-03-28 00:30"), 240)
        clock.set("2027-03-28 00:29:55")
        assert wait_for_slots(instance, clock, 1) == [("2027-03-28 00:30", "Week 0")]
        clock.set("2027-03-28 01:31:00")
        wait_for("the plan", lambda: scheduled(instance, clock, "2027-04-04 00:30"), 240)
        assert wait_for_slots(instance, clock, 1) == [("2027-03-28 00:30", "Week 0")]
    # In autumn there are two, at 00:30 and 01:30 UTC.
    clock.set("2027-10-30 12:00:00")
    with Instance(home, database_url=database_url) as instance:
        before = len(wait_for_slots(instance, clock, 2))
        wait_for("the plan", lambda: scheduled(instance, clock, "2027-10-31 00:30"), 240)
        clock.set("2027-10-31 00:29:55")
        assert wait_for_slots(instance, clock, before + 1)[before:] == [("2027-10-31 00:30", "Skipped: 0 of 40")]
        clock.set("2027-10-31 01:31:00")
        wait_for("the plan", lambda: scheduled(instance, clock, "2027-11-07 01:30"), 240)
        assert len(wait_for_slots(instance, clock, before + 1)) == before + 1


def test_while_a_cycle_takes_longer_than_a_week_its_slots_begin_no_other_and_the_one_after_it_does(
    database_url: str, clock: Clock, home: Path, weekly: Path, tmp_path: Path
) -> None:
    clock.set("2027-01-02 12:00:00")
    with Instance(home, config=weekly, database_url=database_url) as instance:
        wait_for("the plan", lambda: scheduled(instance, clock, "2027-01-17 01:30"), 240)
        dont_miss_heartbeats(instance)
        run_command(home, "cycle", "run", "--config", str(weekly))
        comparisons = write_comparisons(tmp_path / "week.jsonl", 0, 50)
        run_command(home, "import", "--question", "helpful", "--source", "tiny", str(comparisons))
        clock.set("2027-01-03 01:29:55")
        wait_for("PPO", lambda: job_of(home, "train_policy") is not None, 240)
        job = job_of(home, "train_policy")
        assert job is not None
        with stopped(job.pid):
            clock.set("2027-01-10 01:29:55")
            wait_for("the second slot's run", lambda: states_of(instance, "2027-01-10") == ["Not started"], 240)
            assert cycles(instance) == 2
        slots = wait_for_slots(instance, clock, 2)
        assert slots[0][0] == "2027-01-03 01:30"
        assert slots[0][1] in ("Promoted", "Refused")
        assert slots[1] == ("2027-01-10 01:30", "Not started")
        clock.set("2027-01-17 01:29:55")
        assert wait_for_slots(instance, clock, 3)[2] == ("2027-01-17 01:30", "Skipped: 0 of 40")
        assert cycles(instance) == 2


def dont_miss_heartbeats(instance: Instance) -> None:
    """Take away what ends silent runs: of a week that passes within a second no heartbeat tells."""
    [silence] = [
        each for each in prefect(instance, "POST", "/automations/filter", {}).json() if each["name"] == AUTOMATION
    ]
    prefect(instance, "DELETE", f"/automations/{silence['id']}").raise_for_status()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing in here and goes on after it, however this ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def states_of(instance: Instance, day: str) -> list[str]:
    """The states of the schedule's runs of a day's slot."""
    of_cycles = {"flows": {"name": {"any_": ["cycle"]}}, "flow_runs": {"tags": {"all_": ["auto-scheduled"]}}}
    found = PrefectApi(instance.prefect_api_url).flow_runs(of_cycles)
    return [run["state_name"] for run in found if run["expected_start_time"].startswith(day)]
