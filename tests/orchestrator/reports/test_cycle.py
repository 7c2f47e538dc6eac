"""What a cycle's report gathers: each stage with its own time, each policy with its own figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from db import tables as t
from models.runtime.results import part_to_json, result_from_json
from orchestrator.reports.cycle import numbers_of, stage_times
from orchestrator.reports.cycle_text import to_markdown
from orchestrator.reports.numbers import CycleNumbers, StageTime
from tests.db.rows import add_artifact, add_cycle
from tests.orchestrator.published_results import preference_model
from tests.orchestrator.reports.policy_results import BARE_PPO, evaluation

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
    assert [(row.stage, row.run, row.seconds) for row in times] == [
        ("prepare_initial_policy", 1, 1.0),
        ("train_policy", 1, 3.0),
        ("prepare_initial_policy", 2, 1.0),
        ("train_policy", 2, 54.7),
        ("evaluate_best_of_16", 2, 19.5),
    ]
    table = to_markdown(CycleNumbers(cycle=1, name="x", stages=tuple(times))).splitlines()[-5:]
    assert table == [
        "| prepare_initial_policy | found (before the restart) | 1.0 | 0.0 |",
        "| train_policy | failed (before the restart) | 3.0 | 2.5 |",
        "| prepare_initial_policy | found | 1.0 | 0.0 |",
        "| train_policy | done | 54.7 | 53.0 |",
        "| evaluate_best_of_16 | done | 19.5 | 19.0 |",
    ]


def add_stage(session: Session, cycle: t.Cycle, name: str, artifact: t.Artifact) -> None:
    session.add(t.Stage(cycle_id=cycle.id, name=name, state="done", artifact_id=artifact.id, ended_at=BEGAN))
    session.flush()


def judge_policy(session: Session, cycle: t.Cycle, artifact: t.Artifact, kl_nats: float) -> None:
    numbers = part_to_json(evaluation(kl_nats=kl_nats))
    session.add(t.Evaluation(cycle_id=cycle.id, subject_id=artifact.id, kind="policy", numbers=numbers))
    session.flush()


def test_an_open_cycle_shows_no_other_policys_figures_as_its_snapshots(session: Session) -> None:
    cycle = add_cycle(session)
    initial, other = add_artifact(session, "initial_policy"), add_artifact(session)
    add_stage(session, cycle, "prepare_initial_policy", initial)
    judge_policy(session, cycle, initial, 0.0)
    # What was live, say.
    judge_policy(session, cycle, other, 1.0)
    numbers = numbers_of(session, cycle.id)
    assert numbers.evaluation is None
    assert numbers.initial_evaluation is not None
    assert numbers.initial_evaluation.kl_nats == 0.0
    assert "KL to the initial policy" not in to_markdown(numbers)

    snapshot = add_artifact(session, results=part_to_json(BARE_PPO))
    add_stage(session, cycle, "train_policy", snapshot)
    assert numbers_of(session, cycle.id).evaluation is None
    judge_policy(session, cycle, snapshot, 2.0)
    judge_policy(session, cycle, other, 3.0)
    numbers = numbers_of(session, cycle.id)
    assert numbers.evaluation is not None
    assert numbers.evaluation.kl_nats == 2.0
    assert numbers.initial_evaluation is not None
    assert numbers.initial_evaluation.kl_nats == 0.0


def test_the_numbers_are_read_back_from_their_json() -> None:
    numbers = CycleNumbers(
        cycle=1,
        name="x",
        preference_model=preference_model(),
        training=BARE_PPO,
        evaluation=evaluation(num_prompts=4),
        stages=(StageTime("train_policy", "done", 1, 2.0, 1.5),),
    )
    assert result_from_json(CycleNumbers, numbers.to_json(), where="report.json") == numbers
    # Whoever reads the JSON finds every key, also of what the cycle has not come to.
    assert numbers.to_json()["elo"] is None
