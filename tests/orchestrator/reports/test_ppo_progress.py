"""`orchestrator cycle watch`: which run, which columns, and what a run that was killed looks like."""

import dataclasses
import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine
from models.runtime.results import result_to_json
from orchestrator.cli import main
from orchestrator.cycles.presence import at_work
from orchestrator.reports.ppo_progress import Table
from orchestrator.reports.ppo_runs import FileRun, ToldRun, read_lines
from tests.db.rows import add_artifact, add_cycle
from tests.orchestrator.reports.policy_results import BARE_PPO

LEGEND = [
    "step: iteration; score: mean PM score of the rollout, PM units; KL: to the initial policy, nats per reply; wires:",
    "tripwires beyond their bound now",
]


def line(step: int, **more: float | None) -> dict[str, float | None]:
    return {"step": step, "objective/scores": 0.5 + step, "objective/kl": 0.25, "watch/wires_beyond": 0.0} | more


def write(run: Path, *lines: dict[str, float | None], time_s: int, end: str = "") -> Path:
    run.mkdir(parents=True, exist_ok=True)
    file = run / "metrics.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines) + end)
    os.utime(file, (time_s, time_s))
    return run


def test_the_newest_run_of_ppo_is_followed(tmp_path):
    assert FileRun.newest(tmp_path) is None
    write(tmp_path / "old", line(1), time_s=100)
    new = write(tmp_path / "new", line(1), time_s=200)
    write(tmp_path / "pm", {"step": 1, "loss": 0.7}, time_s=300)
    write(tmp_path / "begun", time_s=400, end='{"step": 1')
    assert FileRun.newest(tmp_path) == FileRun(new)


def test_rows_come_once_and_a_half_written_line_waits(tmp_path):
    run = write(tmp_path / "run", line(1), line(2), time_s=100, end='{"step": 3, "obj')
    table = Table()
    assert list(table.rows(read_lines(run))) == [
        *LEGEND,
        "  step   score      KL   wires",
        "     1   1.500   0.250       0",
        "     2   2.500   0.250       0",
    ]
    assert list(table.rows(read_lines(run))) == []
    write(run, line(1), line(2), line(3, **{"objective/scores": None}), time_s=100)
    assert list(table.rows(read_lines(run))) == ["     3           0.250       0"]


def test_a_run_that_was_killed_says_where_it_goes_on():
    table = Table()
    list(table.rows([line(1), line(2), line(3)]))
    assert list(table.rows([line(1)])) == ["went on after step 1"]
    assert list(table.rows([line(1), line(2)])) == ["     2   2.500   0.250       0"]


def test_the_command_ends_with_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    run = write(tmp_path / "work" / "f1", line(1), time_s=100)
    (run / "run.json").write_text("{}")
    assert main(["cycle", "watch"]) == 0
    printed = capsys.readouterr().out.splitlines()
    table = ["  step   score      KL   wires", "     1   1.500   0.250       0"]
    assert printed == [f"PPO: {run / 'metrics.jsonl'}", *LEGEND, *table, "ended"]
    (run / "spec.json").write_text(json.dumps({"settings": {"iterations": 40}}))
    assert main(["cycle", "watch"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"PPO, 40 iterations: {run / 'metrics.jsonl'}"
    (run / "run.json").write_text(json.dumps({"samples": 64, "score_end": 1.0, "kl_nats": 0.5, "stopped": "length"}))
    assert main(["cycle", "watch"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "ended after 64 samples; its snapshot: score 1.000, KL 0.500 nats; stopped by a tripwire: length"
    )


def test_a_run_that_died_is_told_from_one_that_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    run = write(tmp_path / "work" / "f1", line(1), time_s=100)
    assert FileRun(run).state() == "running"  # started by hand: nothing tells
    (run / "job.log").write_text("step\nMemoryError\n")
    with (run / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert FileRun(run).state() == "running"
        assert main(["cycle", "watch", "--once"]) == 0
        assert "died: " not in capsys.readouterr().out
    assert FileRun(run).state() == "died"
    assert main(["cycle", "watch"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("died: nobody runs this job any more")
    assert last.endswith("job.log): MemoryError")
    # The end of a run that was done before in the same place is not this one's.
    (run / "run.json").write_text("{}")
    os.utime(run / "run.json", (99, 99))
    assert FileRun(run).state() == "died"
    os.utime(run / "run.json", (100, 100))
    assert FileRun(run).state() == "ended"
    (run / "run.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert FileRun(run).state() == "died"


def test_the_reason_to_stop_follows_the_row_of_its_rollout():
    lines = [line(1), line(2) | {"stopped": "entropy 0.1 is 5% of the start's (iteration 2)"}]
    assert list(Table().rows(lines))[-2:] == [
        "     2   2.500   0.250       0",
        "stopped: entropy 0.1 is 5% of the start's (iteration 2)",
    ]


def test_a_recovery_follows_the_row_of_its_rollout():
    found = "40% of tokens were clipped (iteration 1)"
    assert list(Table().rows([line(1) | {"recovered": found}, line(2)]))[-2] == f"recovered: {found}"


def test_without_a_run_the_command_says_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    assert main(["cycle", "watch", "--once"]) == 2
    said = capsys.readouterr().err
    assert f"No PPO run has told a line in {tmp_path / 'work'}; no DATABASE_URL is set" in said


def test_columns_are_those_that_the_run_has():
    assert list(Table().rows([])) == []
    more = {"watch/twin_gap": 0.5, "watch/score_watcher": 1.0, "objective/scores_harmless": 2.0}
    *_, title, row = Table().rows([line(1, **more)])
    assert title.split() == ["step", "score", "harmless", "KL", "watcher", "gap", "wires"]
    assert row.split() == ["1", "1.500", "2.000", "0.250", "1.000", "0.500", "0"]


def tell(session, stage, *lines):
    session.add(stage)
    session.flush()
    session.add(t.StageProgress(stage_id=stage.id, phase="iteration", step=len(lines), steps=40))
    session.add_all(t.StageMetrics(stage_id=stage.id, line=place, numbers=one) for place, one in enumerate(lines))
    session.flush()


def test_watch_waits_for_ppo_of_the_open_cycle_and_says_for_what(database_url, home, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", database_url)
    engine = make_engine(database_url)

    def ppo_begins(session):
        session.add(t.Stage(cycle_id=cycle_id, name="train_policy", fingerprint="new"))

    def ppo_tells(session):
        stage = session.scalars(select(t.Stage).where(t.Stage.name == "train_policy").order_by(t.Stage.id.desc()))
        tell(session, stage.first(), line(1))

    def ppo_ends(session):
        stage = session.scalars(select(t.Stage).where(t.Stage.state == "running", t.Stage.name == "train_policy")).one()
        results = dataclasses.replace(BARE_PPO, samples=64, kl_nats=0.5, stopped="length")
        stage.artifact_id = add_artifact(session, results=result_to_json(results)).id
        stage.state, stage.ended_at = "done", datetime.now(UTC)

    steps = [ppo_begins, ppo_tells, ppo_ends]

    def next_step(seconds):
        with Session(engine) as session, session.begin():
            steps.pop(0)(session)

    with Session(engine) as session, session.begin():
        earlier = add_cycle(session)
        stage = t.Stage(cycle_id=earlier.id, name="train_policy", state="failed", error="x", ended_at=datetime.now(UTC))
        tell(session, stage, line(1))
        earlier.state, earlier.ended_at = "refused", datetime.now(UTC)
        session.flush()
        cycle = add_cycle(session)
        cycle_id, number = cycle.id, cycle.number
        session.add(t.Stage(cycle_id=cycle_id, name="check_data", state="running"))
    monkeypatch.setattr("orchestrator.commands.cycles.cycle.time.sleep", next_step)
    with at_work(cycle_id, "train_policy"):
        assert main(["cycle", "watch"]) == 0
    waiting = f"Waiting for PPO to tell its first line (Ctrl-C ends it): cycle {number} is at"
    assert capsys.readouterr().out.splitlines() == [
        f"{waiting} check_data.",
        f"{waiting} train_policy.",
        f"PPO, cycle {number}, 40 iterations",
        # The one before ended as soon as it had begun.
        f"Cycle {number} as a whole: longer at it than cycle {number - 1} was.",
        *LEGEND,
        "  step   score      KL   wires",
        "     1   1.500   0.250       0",
        "ended after 64 samples; its snapshot: score 1.000, KL 0.500 nats; stopped by a tripwire: length",
    ]
    assert steps == []

    # What there is so far, whatever is to come.
    with Session(engine) as session, session.begin():
        session.get_one(t.Cycle, cycle_id).state = "refused"
        session.get_one(t.Cycle, cycle_id).ended_at = datetime.now(UTC)
        session.flush()
        later = add_cycle(session)
        session.add(
            t.Stage(cycle_id=later.id, name="check_data", state="failed", error="x", ended_at=datetime.now(UTC))
        )
        number = later.number
    assert main(["cycle", "watch", "--once"]) == 0
    capsys.readouterr()
    # It stopped on the way: nothing will come.
    assert main(["cycle", "watch"]) == 2
    assert f"Cycle {number} stopped at check_data before PPO wrote a line" in capsys.readouterr().err
    engine.dispose()


def test_a_run_on_another_machine_that_was_killed_is_told_from_one_at_work(database_url, home, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", database_url)
    engine = make_engine(database_url)
    with Session(engine) as session, session.begin():
        cycle_id = add_cycle(session).id
        tell(session, t.Stage(cycle_id=cycle_id, name="train_policy"), line(1))
    engine.dispose()
    run = ToldRun.newest()
    with at_work(cycle_id, "train_policy"):
        assert run.state() == "running"
    assert run.state() == "died"
    assert run.last_words("died").startswith("died: nobody runs this job any more")
