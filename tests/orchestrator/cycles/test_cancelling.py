"""A cycle that is given up: nothing of it is written from then on, and what works on it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from db import tables as t
from db.session import transaction
from flows.deciding import finish
from flows.running import InProcess
from orchestrator import stages
from orchestrator.config import CycleConfig, parse_config
from orchestrator.cycles import cancelling
from orchestrator.cycles.cancelling import give_up
from orchestrator.cycles.deciding import expire, take_decision
from orchestrator.cycles.presence import at_work, who_is_at_work
from orchestrator.cycles.record import cancel_cycle, close_cycle, open_cycle, open_cycle_row, stored
from orchestrator.cycles.standing import give_up_abandoned, left_by_run, longest_idle
from orchestrator.errors import CycleBlocked, CycleCancelled, CycleError
from orchestrator.stages.context import StageContext, build
from orchestrator.store.acts import Actor, machine_user
from tests.db.rows import add_artifact
from tests.paths import PROJECT_ROOT
from tests.waiting import wait_for

ANNA = Actor("Anna", "claimed", "prefect")
WRITTEN = (t.Stage, t.Artifact, t.Evaluation, t.Decision, t.Deployment, t.Pairing, t.Freeze)


@pytest.fixture
def config(home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> CycleConfig:
    """A configuration on an instance without services."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("ORCHESTRATOR_POLICY_URL", raising=False)
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    return configuration()


def configuration(**cycle: Any) -> CycleConfig:
    return parse_config({"name": "small", "initial_policy": {"path": "/no/such"}, "cycle": cycle})


def counts(engine: Engine) -> dict[str, int]:
    with Session(engine) as session:
        return {
            table.__tablename__: session.scalars(select(func.count()).select_from(table)).one() for table in WRITTEN
        }


@pytest.fixture
def artifact_id(config: CycleConfig, engine: Engine) -> int:
    with transaction(engine) as session:
        return add_artifact(session).id


def test_no_stage_of_a_cancelled_cycle_begins(config: CycleConfig, engine: Engine, artifact_id: int) -> None:
    cycle_id = open_cycle(config)
    cancel_cycle(1, ANNA, "wrong data")
    before = counts(engine)
    a = artifact_id
    begin: list[Callable[[], Any]] = [
        lambda: stages.prepare_initial_policy(cycle_id),
        lambda: stages.deploy_initial_policy(cycle_id, a),
        lambda: stages.freeze_comparisons(cycle_id),
        lambda: stages.check_data(cycle_id, a),
        lambda: stages.pretrain_preference_model(cycle_id, a),
        lambda: stages.train_preference_model(cycle_id, a, a),
        lambda: stages.train_watcher(cycle_id, a, a, a),
        lambda: stages.check_preference_model(cycle_id, a),
        lambda: stages.build_prompts(cycle_id, a),
        lambda: stages.write_prompts(cycle_id, a, a),
        lambda: stages.train_policy(cycle_id, a, a, a),
        lambda: stages.evaluate_policy(cycle_id, a, a, a, a),
        lambda: stages.fit_ood_detector(cycle_id, a, a),
        lambda: stages.decide_promotion(cycle_id, a, a, a),
        lambda: stages.promote(cycle_id, 1),
        lambda: stages.put_before_people(cycle_id, a, a),
        lambda: close_cycle(cycle_id, "promoted"),
    ]
    said = r"^Cycle 1 is cancelled, and nothing of it goes on\. Cancelled by Anna \(as typed into a form\): wrong data$"
    for stage in begin:
        with pytest.raises(CycleCancelled, match=said):
            stage()
    assert counts(engine) == before


def test_a_stage_that_is_at_work_ends_without_effect(config: CycleConfig, engine: Engine, artifact_id: int) -> None:
    cycle_id = open_cycle(config)

    def write(out: Path) -> dict[str, Any]:
        (out / "file").write_text("text")
        cancel_cycle(1, ANNA)
        return {}

    with pytest.raises(CycleCancelled), StageContext(cycle_id, "build_prompts") as context:
        build(context, "prompt_set", {}, {}, write)
    with pytest.raises(CycleCancelled):
        context.record_evaluation("policy", artifact_id, {"score": 1.0})
    found = counts(engine)
    assert (found["artifacts"], found["evaluations"]) == (1, 0)
    with Session(engine) as session:
        stage = session.scalars(select(t.Stage)).one()
        said = "CycleCancelled: Cancelled by Anna (as typed into a form)."
        assert (stage.state, stage.error, stage.artifact_id) == ("failed", said, None)
        assert stage.ended_at is not None


def test_cancelling_waits_for_a_transaction_that_writes_and_no_longer(
    config: CycleConfig, engine: Engine, artifact_id: int
) -> None:
    cycle_id = open_cycle(config)
    done = threading.Event()

    def cancel() -> None:
        cancel_cycle(1, ANNA)
        done.set()

    with transaction(engine) as writes, transaction(engine) as writes_too:
        # Two stages at the same time don't wait for each other.
        open_cycle_row(writes, cycle_id)
        open_cycle_row(writes_too, cycle_id)
        thread = threading.Thread(target=cancel)
        thread.start()
        wait_for("the cancellation to wait for the lock", lambda: num_waiting(engine) == 1)
        assert not done.is_set()
        evaluation = t.Evaluation(cycle_id=cycle_id, subject_id=artifact_id, kind="policy", numbers={})
        writes.add(evaluation)
    thread.join()
    # What was first is there, and nothing comes after it.
    assert counts(engine)["evaluations"] == 1
    with transaction(engine) as session, pytest.raises(CycleCancelled):
        open_cycle_row(session, cycle_id)


def num_waiting(engine: Engine) -> int:
    with Session(engine) as session:
        waiting = "select count(*) from pg_locks where not granted"
        return int(session.execute(text(waiting)).scalar_one())


def test_nobody_decides_about_a_cancelled_cycle_in_time_or_out_of_it(
    config: CycleConfig, engine: Engine, artifact_id: int
) -> None:
    cycle_id = open_cycle(config)
    with transaction(engine) as session:
        asked = {"why": "asked", "reasons": [], "evidence": {}, "expires_at": datetime.now(UTC)}
        session.add(t.Approval(cycle_id=cycle_id, snapshot_id=artifact_id, **asked))
    cancel_cycle(1, ANNA)
    assert expire() == []
    with pytest.raises(CycleError, match="Cycle 1 is cancelled; only an open cycle can be decided about"):
        take_decision(1, "promote", ANNA, "it is good")
    outcome = asyncio.run(finish(InProcess([].append), cycle_id))
    assert (outcome.name, outcome.message) == ("Cancelled", "The cycle is cancelled already; nothing was left to do.")
    assert counts(engine)["decisions"] == 0


def test_who_cancelled_and_why_stands_on_the_cycle_and_among_the_acts(config: CycleConfig, engine: Engine) -> None:
    open_cycle(config)
    said: list[str] = []
    give_up(1, ANNA, "the labels are turned round", None, said.append)
    assert said == [
        "Cycle 1 is cancelled: from now on nothing of it is written.",
        "Nothing works on it any more. Its comparisons go into the next comparison set.",
    ]
    with Session(engine) as session:
        cycle = session.scalars(select(t.Cycle)).one()
        assert cycle.note == "Cancelled by Anna (as typed into a form): the labels are turned round"
        act = session.scalars(select(t.OperatorAct)).one()
    assert (act.actor, act.identity, act.via) == ("Anna", "claimed", "prefect")
    assert (act.act, act.subject, act.details) == (
        "cancel_cycle", "cycle 1", {"reason": "the labels are turned round"},
    )  # fmt: skip
    with pytest.raises(CycleError, match=r"^Cycle 2 does not exist; only an open cycle"):
        give_up(2, ANNA, None, None, said.append)
    # Somebody whose command was interrupted looks again; who cancelled it stays the same.
    give_up(1, machine_user(), None, None, said.append)
    with Session(engine) as session:
        assert session.scalars(select(func.count()).select_from(t.OperatorAct)).one() == 1


JOB = """
import sys
from pathlib import Path
from orchestrator.instance import training_jobs
from orchestrator.stages.context import StageContext
training_jobs.PROJECT_ROOT = Path(sys.argv[2])
with StageContext(int(sys.argv[1]), "train_policy") as context:
    training_jobs.run_job("probe", inputs={}, settings={}, seed=0, work=Path(sys.argv[3]),
                          check_wanted=context.check_wanted)
"""
PROBE = """
import pathlib, signal, sys, time
out = pathlib.Path(sys.argv[-1])
def end(*_):
    (out / "asked").write_text("SIGTERM")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
(out / "begun").write_text("")
while True:
    signal.pause()
"""


def test_a_job_in_another_process_is_asked_to_end_and_waited_for(
    config: CycleConfig, engine: Engine, tmp_path: Path
) -> None:
    """Without a Prefect server nobody can reach that process; it asks for itself whether its job is wanted."""
    cycle_id = open_cycle(config)
    folder, work = tmp_path / "fake" / "models" / "jobs", tmp_path / "work"
    folder.mkdir(parents=True)
    for file, body in ((folder.parent / "__init__.py", ""), (folder / "__init__.py", ""), (folder / "probe.py", PROBE)):
        file.write_text(body)
    words = [sys.executable, "-c", JOB, str(cycle_id), str(tmp_path / "fake"), str(work)]
    process = subprocess.Popen(words, cwd=PROJECT_ROOT, stderr=subprocess.PIPE, text=True)
    wait_for("the job", (work / "begun").exists)
    said: list[str] = []
    asked_s = time.monotonic()
    give_up(1, ANNA, None, None, said.append)
    assert time.monotonic() - asked_s < 10
    assert said[1:3] == ["at work, and told to end: train_policy", "has ended: train_policy"]
    assert (work / "asked").read_text() == "SIGTERM"
    _, told = process.communicate(timeout=30)
    assert "CycleCancelled: Cycle 1 is cancelled, and nothing of it goes on." in told.splitlines()[-1]


def test_what_ends_in_the_moment_the_cycle_is_closed_was_told_too(
    config: CycleConfig, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job asks every moment whether it is wanted, and may ask before the command looks who is at work."""
    cycle_id = open_cycle(config)
    said: list[str] = []
    with ExitStack() as job:
        job.enter_context(at_work(cycle_id, "train_policy"))

        def closed(*args: Any) -> int:
            closed_id = cancel_cycle(*args)
            job.close()
            return closed_id

        monkeypatch.setattr(cancelling, "cancel_cycle", closed)
        give_up(1, ANNA, None, None, said.append)
    assert said[1:3] == ["at work, and told to end: train_policy", "has ended: train_policy"]


def test_a_run_is_at_work_on_its_cycle_alone_and_until_its_process_ends(config: CycleConfig, engine: Engine) -> None:
    cycle_id = open_cycle(config)
    with at_work(cycle_id, "cycle run"), at_work(cycle_id, "train_policy"), Session(engine) as session:
        assert who_is_at_work(session, cycle_id) == ["cycle run", "train_policy"]
        assert who_is_at_work(session, cycle_id + 1) == []
    with Session(engine) as session:
        assert who_is_at_work(session, cycle_id) == []


def test_a_cancelled_run_leaves_word_of_its_open_cycle(config: CycleConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_by_run("a-run") is None
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "a-run")
    open_cycle(config)
    assert str(left_by_run("a-run")).startswith("This run is cancelled; cycle 1 is open all the same. The next run")
    assert left_by_run("another") is None
    cancel_cycle(1, ANNA)
    assert left_by_run("a-run") == "Cycle 1 is cancelled. Cancelled by Anna (as typed into a form)."


def test_what_a_run_does_about_other_runs_makes_no_other_cycle(config: CycleConfig) -> None:
    cycle_id = open_cycle(config)
    assert open_cycle(configuration(second_trigger="queue", abandon_after_hours=3)) == cycle_id
    with pytest.raises(CycleBlocked, match=r"they differ in cycle\.min_comparisons.*`cancel-cycle`, cycle 1\)\.$"):
        open_cycle(configuration(min_comparisons=3))


@pytest.mark.parametrize(
    ("cron", "hours", "idle_h"),
    [
        ("0 6 * * 1", None, 24.0),
        # A day's half: after an hour of work a cycle may lie for 23 until the next slot.
        ("0 6 * * *", None, 12.0),
        ("0 6 * * 1", 7.5, 7.5),
        ("0 6 * * 1", 0, None),
    ],
)
def test_how_long_a_cycle_may_lie(cron: str, hours: float | None, idle_h: float | None) -> None:
    raw = {"initial_policy": {"path": "x"}, "cycle": {"abandon_after_hours": hours}, "schedule": {"cron": cron}}
    found = longest_idle(parse_config(raw))
    assert found == (None if idle_h is None else timedelta(hours=idle_h))


def test_an_abandoned_cycle_is_given_up_by_itself(config: CycleConfig, engine: Engine, artifact_id: int) -> None:
    now, other = datetime.now(UTC), configuration(min_comparisons=3)
    with transaction(engine) as session:
        cycle = t.Cycle(number=1, name="small", config=stored(config), started_at=now - timedelta(hours=30))
        session.add(cycle)
        session.flush()
        cycle_id = cycle.id
        session.add(t.Stage(cycle_id=cycle_id, name="train_policy", started_at=now - timedelta(hours=25)))
    # It is in nobody's way; something began after 5 of its hours; never is never.
    assert give_up_abandoned(config) is None
    assert give_up_abandoned(configuration(min_comparisons=3, abandon_after_hours=28)) is None
    assert give_up_abandoned(configuration(min_comparisons=3, abandon_after_hours=0)) is None
    with at_work(cycle_id, "train_policy"):
        assert give_up_abandoned(other) is None
    with transaction(engine) as session:
        asked = {"why": "asked", "reasons": [], "evidence": {}, "expires_at": now}
        waits = t.Approval(cycle_id=cycle_id, snapshot_id=artifact_id, **asked)
        session.add(waits)
        session.flush()
        approval_id = waits.id
    assert give_up_abandoned(other) is None
    with transaction(engine) as session:
        told = {"decision": "refuse", "reasons": [], "evidence": {}, "decided_by": "timeout"}
        told["created_at"] = now - timedelta(hours=24.5)
        session.add(t.Decision(cycle_id=cycle_id, snapshot_id=artifact_id, approval_id=approval_id, **told))
    # Decided half an hour after its stage had begun: that is progress too.
    assert give_up_abandoned(configuration(min_comparisons=3, abandon_after_hours=24.8)) is None
    assert str(give_up_abandoned(other)).startswith("Cycle 1 is given up by itself: nothing came of it since ")
    with Session(engine) as session:
        cycle = session.get_one(t.Cycle, cycle_id)
        act = session.scalars(select(t.OperatorAct)).one()
    assert cycle.state == "cancelled"
    assert str(cycle.note).startswith("Given up by itself: nothing came of it since ")
    assert (act.identity, act.via, act.subject) == ("machine", "program", "cycle 1")
    assert open_cycle(other) != cycle_id
    assert json.dumps(act.details).startswith('{"reason": "nothing came of it since')
