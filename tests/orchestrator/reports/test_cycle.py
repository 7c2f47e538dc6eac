"""What a cycle's report says of its stages: each with its own time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.reports.cycle import stage_times
from orchestrator.reports.cycle_text import to_markdown
from tests.db.rows import add_cycle

BEGAN = datetime(2026, 1, 5, tzinfo=UTC)


def test_each_stage_has_its_own_time_and_those_before_a_restart_are_marked(session: Session) -> None:
    cycle = add_cycle(session)
    attempts = [
        ("prepare_initial_policy", "found", 0, 1, 0.0),
        ("train_policy", "failed", 2, 5, 2.5),
        ("prepare_initial_policy", "found", 60, 61, 0.0),
        # These two run beside each other: 54.7 s are PPO's, and none of them the evaluation's.
        ("train_policy", "done", 61, 115.7, 53.0),
        ("evaluate_best_of_16", "done", 62, 81.5, 19.0),
    ]
    for name, state, start_s, end_s, job_seconds in attempts:
        began, ended = BEGAN + timedelta(seconds=start_s), BEGAN + timedelta(seconds=end_s)
        session.add(
            t.Stage(
                cycle_id=cycle.id, name=name, state=state, started_at=began, ended_at=ended, job_seconds=job_seconds
            )
        )
        session.flush()
    times = stage_times(session, cycle.id)
    assert [(row["stage"], row["run"], row["seconds"]) for row in times] == [
        ("prepare_initial_policy", 1, 1.0),
        ("train_policy", 1, 3.0),
        ("prepare_initial_policy", 2, 1.0),
        ("train_policy", 2, 54.7),
        ("evaluate_best_of_16", 2, 19.5),
    ]
    empty = dict.fromkeys(("comparison_set", "preference_model", "orientation", "evaluation", "best_of_n", "elo"))
    numbers = empty | {"cycle": 1, "name": "x", "decision": None, "snapshot": None, "reasons": [], "stages": times}
    table = to_markdown(numbers).splitlines()[-5:]
    assert table == [
        "| prepare_initial_policy | found (before the restart) | 1.0 | 0.0 |",
        "| train_policy | failed (before the restart) | 3.0 | 2.5 |",
        "| prepare_initial_policy | found | 1.0 | 0.0 |",
        "| train_policy | done | 54.7 | 53.0 |",
        "| evaluate_best_of_16 | done | 19.5 | 19.0 |",
    ]
