"""How long the open cycle still takes: learned from earlier cycles of the same configuration, or said to be unknown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cycles.cost import FIRST_STAGE
from orchestrator.cycles.time_left import NOTHING_TO_GO_BY, TimeLeft, duration, left_said, time_left
from tests.db.rows import add_artifact, add_cycle

BEGAN = datetime(2026, 1, 5, 12, tzinfo=UTC)
CONFIG = {"name": "weekly", "cycle": {"second_trigger": "queue"}, "ppo": {"iterations": 40}}
# Where each stage begins and ends, in seconds. The twin runs beside the preference model, and 20 s longer.
USUAL = (
    ("freeze", 0, 10),
    ("train_pm", 12, 112),
    ("train_twin", 12, 132),
    ("evaluate", 140, 170),
    ("evaluate", 170, 230),
)


def add_stages(session: Session, cycle: t.Cycle, stages: tuple[tuple[str, float, float | None], ...], **fields) -> None:
    """Stages in rows, each with an artifact of its own where it has ended."""
    for name, begin, end in stages:
        ended = None if end is None else BEGAN + timedelta(seconds=end)
        state = "running" if end is None else "done"
        values = {"state": state, "artifact_id": None if end is None else add_artifact(session).id} | fields
        session.add(
            t.Stage(cycle_id=cycle.id, name=name, started_at=BEGAN + timedelta(seconds=begin), ended_at=ended, **values)
        )
        session.flush()


def earlier(session: Session, factor: float = 1.0, state: str = "promoted", config: dict | None = None) -> t.Cycle:
    """A cycle that took so many times what is usual, and ended when its last stage did."""
    cycle = add_cycle(session, config=config or CONFIG)
    add_stages(session, cycle, tuple((name, begin * factor, end * factor) for name, begin, end in USUAL))
    return end(session, cycle, 231 * factor, state)


def end(session: Session, cycle: t.Cycle, seconds: float, state: str = "promoted") -> t.Cycle:
    cycle.state, cycle.ended_at = state, BEGAN + timedelta(seconds=seconds)
    session.flush()
    return cycle


def left_at(session: Session, cycle: t.Cycle, seconds: float) -> TimeLeft:
    left = time_left(session, cycle.id, BEGAN + timedelta(seconds=seconds))
    assert left is not None
    return left


def test_the_first_cycle_of_a_configuration_says_that_nothing_is_known(session: Session) -> None:
    earlier(session, config=CONFIG | {"ppo": {"iterations": 20}})
    earlier(session, state="cancelled")
    cycle = add_cycle(session, config=CONFIG)
    assert time_left(session, cycle.id) is None
    assert left_said(session, cycle.id) == NOTHING_TO_GO_BY


def test_what_is_left_is_what_the_earlier_cycle_took_from_here_on(session: Session) -> None:
    by = earlier(session)
    # What it says about other runs makes it no other cycle.
    cycle = add_cycle(session, config=CONFIG | {"cycle": {"second_trigger": "refuse"}})
    # The clock of the earlier one: 230 s, in which the twin counts for the 20 s that it was longer.
    assert left_at(session, cycle, 0).seconds == pytest.approx(230)
    add_stages(session, cycle, (("freeze", 0, 10), ("train_pm", 12, None)))
    # 62 s in: 52 of train_pm's 102 (with the way to it), then 20 of the twin, 38 and 60 of the evaluations.
    left = left_at(session, cycle, 62)
    assert left.seconds == pytest.approx((102 - 50) + 20 + 38 + 60)
    assert left.share_done == pytest.approx(1 - 170 / 230)
    assert (left.by, left.said) == (by.number, f"about 3 min left at 12:01 UTC, going by cycle {by.number}")
    # A stage that takes longer than it did is left out; its own job may know better.
    assert left_at(session, cycle, 5000).seconds == pytest.approx(118)
    running = session.query(t.Stage).filter_by(cycle_id=cycle.id, state="running").one()
    told = BEGAN + timedelta(seconds=5000)
    session.add(t.StageProgress(stage_id=running.id, phase="epoch", step=1, steps=2, eta_s=300, told_at=told))
    session.flush()
    assert left_at(session, cycle, 5100).seconds == pytest.approx(118 + 200)


def test_the_median_of_three_counts_and_reports_written_later_do_not(session: Session) -> None:
    for factor in (50.0, 1.0, 3.0, 2.0):
        newest = earlier(session, factor)
    add_stages(session, newest, (("write_report", 100_000, 100_900),))
    cycle = add_cycle(session, config=CONFIG)
    left = left_at(session, cycle, 0)
    assert (left.seconds, left.by) == (pytest.approx(2 * 230), newest.number)


def test_what_a_restart_only_found_is_no_step_and_the_night_between_is_no_work(session: Session) -> None:
    cycle = add_cycle(session, config=CONFIG)
    add_stages(session, cycle, USUAL)
    first = session.query(t.Stage).filter_by(cycle_id=cycle.id, name="freeze").one()
    night = 10 * 3600
    add_stages(session, cycle, (("freeze", night, night + 1),), state="found", artifact_id=first.artifact_id)
    add_stages(session, cycle, (("promote", night + 2, night + 5),), artifact_id=None)
    end(session, cycle, night + 6)
    # 230 s, the longest gap that counts (60 s), and 3 s.
    assert left_at(session, add_cycle(session, config=CONFIG), 0).seconds == pytest.approx(293)


def test_a_stage_whose_process_was_killed_is_taken_again(session: Session) -> None:
    earlier(session)
    cycle = add_cycle(session, config=CONFIG)
    add_stages(session, cycle, ((FIRST_STAGE, 0, 0), ("freeze", 0, 10), ("train_pm", 12, None), (FIRST_STAGE, 60, 60)))
    assert left_at(session, cycle, 62).seconds == pytest.approx(220)
    add_stages(session, cycle, (("train_pm", 62, None),))
    assert left_at(session, cycle, 72).seconds == pytest.approx(220 - 10)


def test_a_stage_that_this_time_is_not_taken_is_not_waited_for(session: Session) -> None:
    earlier(session)
    cycle = add_cycle(session, config=CONFIG)
    add_stages(session, cycle, (("freeze", 0, 10), ("train_pm", 12, 112), ("evaluate", 113, 143)))
    assert left_at(session, cycle, 143).seconds == pytest.approx(60)
    add_stages(session, cycle, (("evaluate", 143, 203),))
    done = left_at(session, cycle, 203)
    assert (done.seconds, done.share_done, done.said) == (0, 1, "every stage is done")
    add_stages(session, cycle, (("write_report", 203, None),))
    assert left_at(session, cycle, 210).said == f"longer at it than cycle {done.by} was"


def test_a_time_is_said_as_people_say_it() -> None:
    assert [duration(seconds) for seconds in (42.4, 119, 5999, 6000, 11_100)] == [
        "42 s", "2 min", "1 h 40 min", "1 h 40 min", "3 h 5 min",
    ]  # fmt: skip
