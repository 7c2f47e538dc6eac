"""What a cycle's report gathers: each stage with its own time, each policy with its own figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from db import tables as t
from models.runtime.results import part_to_json, result_from_json
from orchestrator.cycles.cost import StageTime, cost_of, stage_times
from orchestrator.judging.elo import EloNumbers
from orchestrator.reports.cycle import numbers_of
from orchestrator.reports.cycle_text import to_markdown
from orchestrator.reports.numbers import CycleNumbers
from tests.db.rows import add_artifact, add_comparison, add_cycle
from tests.orchestrator.published_results import preference_model, preference_model_results
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


def test_a_cycles_cost_is_job_hours_and_the_time_of_raters_whose_comparisons_it_froze(session: Session) -> None:
    cycle = add_cycle(session)
    for seconds in (1800.0, 5400.0):
        session.add(t.Stage(cycle_id=cycle.id, name="train", state="done", ended_at=BEGAN, job_seconds=seconds))
    freeze = t.Freeze(cycle_id=cycle.id, num_fresh=2)
    session.add(freeze)
    session.flush()
    assert cost_of(session, cycle.id).rater_hours is None
    first, second = (add_comparison(session, duration_ms=milliseconds) for milliseconds in (600_000, None))
    third = add_comparison(session, duration_ms=1_200_000)
    session.add(t.FrozenComparison(freeze_id=freeze.id, first_id=first.id, last_id=third.id))
    # Of the next week.
    add_comparison(session, duration_ms=9_000_000)
    session.flush()
    assert second.duration_ms is None
    cost = cost_of(session, cycle.id)
    # 1800 s + 5400 s; 10 min + 20 min.
    assert (cost.job_hours, cost.rater_hours, cost.timed_comparisons) == (2.0, 0.5, 2)
    assert len(cost.stages) == 2


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


def decide(session: Session, cycle: t.Cycle, snapshot: t.Artifact, decision: str, gain: float) -> None:
    evidence = {"kl_nats": 1.0, "score_gain": gain, "score_gain_ci": [gain - 0.5, gain + 0.5]}
    session.add(
        t.Decision(
            cycle_id=cycle.id, snapshot_id=snapshot.id, decision=decision, reasons=[], evidence=evidence, decided_by="x"
        )
    )
    session.flush()


def test_the_weeks_so_far_are_the_decided_cycles_with_what_people_said_of_them_since(session: Session) -> None:
    weeks = []
    for decision, gain in (("promote", 1.0), ("refuse", 0.25), ("promote", 2.0)):
        cycle = add_cycle(session, state="promoted")
        model = add_artifact(session, "preference_model", results=preference_model_results())
        add_stage(session, cycle, "train_preference_model", model)
        snapshot = add_artifact(session, results=part_to_json(BARE_PPO))
        add_stage(session, cycle, "train_policy", snapshot)
        decide(session, cycle, snapshot, decision, gain)
        weeks.append((cycle, snapshot))
    first, second, third = weeks
    elo = part_to_json(EloNumbers(30.0, (10.0, 50.0), 9, 5, 4, 0))
    session.add(t.Evaluation(cycle_id=first[0].id, subject_id=first[1].id, kind="elo", numbers=elo))
    # Of another policy, in the same cycle.
    session.add(t.Evaluation(cycle_id=second[0].id, subject_id=first[1].id, kind="elo", numbers=elo))
    session.flush()
    # The report of the second cycle, written anew in a later week, does not tell of that.
    numbers = numbers_of(session, second[0].id)
    assert [(week.cycle, week.decision, week.score_gain, week.elo) for week in numbers.weeks] == [
        (first[0].number, "promote", 1.0, 30.0),
        (second[0].number, "refuse", 0.25, None),
    ]
    assert numbers.weeks[0].score_gain_ci == (0.5, 1.5)
    assert numbers.weeks[0].pm is not None
    assert (numbers.weeks[0].pm.accuracy, numbers.weeks[0].pm.n) == (0.5, 100)
    assert len(numbers_of(session, third[0].id).weeks) == 3


def test_a_snapshot_that_waits_for_a_person_says_why_until_it_is_decided(session: Session) -> None:
    cycle = add_cycle(session)
    snapshot = add_artifact(session, results=part_to_json(BARE_PPO))
    add_stage(session, cycle, "train_policy", snapshot)
    session.add(
        t.Approval(
            cycle_id=cycle.id, snapshot_id=snapshot.id, why="approval is on.", reasons=[], evidence={}, expires_at=BEGAN
        )
    )
    session.flush()
    assert numbers_of(session, cycle.id).waits == "approval is on."
    decide(session, cycle, snapshot, "promote", 1.0)
    assert numbers_of(session, cycle.id).waits is None


def test_going_live_with_the_initial_policy_is_no_decision_about_a_snapshot(session: Session) -> None:
    initial = add_artifact(session, "initial_policy")
    week_zero = t.Cycle(number=0, name="test", config={}, state="promoted", ended_at=BEGAN)
    session.add(week_zero)
    found = []
    for cycle in (week_zero, add_cycle(session)):
        session.flush()
        begins = [{"gate": "none", "passed": True, "reason": "nothing was live: the initial policy begins"}]
        session.add(t.Decision(cycle_id=cycle.id, snapshot_id=initial.id, decision="promote", kind="initial",
                               reasons=begins, evidence={}, decided_by="gates"))  # fmt: skip
        session.flush()
        found.append(numbers_of(session, cycle.id))
    assert [(numbers.decision, len(numbers.reasons)) for numbers in found] == [("promote", 1), (None, 0)]
