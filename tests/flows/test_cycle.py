"""The cycle flow under a real Prefect server: week 0, skipping, a whole cycle through every kind of crash."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.running import cancel
from orchestrator.instance.prefect_api import ENDED, PrefectApi
from orchestrator.instance.up import Instance
from tests.flows.kills import digests, flow_process, had_a_model_before, job_of, run_and_kill, stages_done
from tests.flows.prefect_calls import prefect
from tests.flows.tiny_cycle import Orchestrator, begin, run_command, write_comparisons
from tests.waiting import wait_for

# What a whole cycle makes, each exactly once; the initial policy was made in week 0.
ONCE = {
    "freeze_comparisons": 1,
    "check_data": 1,
    "train_preference_model": 1,
    "build_prompts": 1,
    "train_policy": 1,
    "evaluate_policy": 2,  # the initial policy and the snapshot
    "write_report": 1,  # and one more for every run that an error ended
}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One of this file's own: the tests tell its story from the first week on, each going on from the one before."""
    with Instance(tmp_path_factory.mktemp("an instance from the start")) as started:
        yield started


def last_run(instance: Instance, flow: str = "cycle") -> dict[str, object]:
    return PrefectApi(instance.prefect_api_url).flow_runs({"flows": {"name": {"any_": [flow]}}, "limit": 1})[0]


def shown_report(instance: Instance, number: int) -> str:
    """The newest report of a cycle in the Prefect UI."""
    [newest] = prefect(
        instance,
        "POST",
        "/artifacts/latest/filter",
        json={"artifacts": {"key": {"any_": [f"cycle-{number}"]}}},
    ).json()
    assert newest["type"] == "markdown"
    return str(newest["data"])


def test_week_zero_puts_the_initial_policy_before_people(
    instance: Instance, orchestrator: Orchestrator, config_file: Path
) -> None:
    printed = orchestrator("cycle", "run", "--config", str(config_file))
    assert "Week 0" in printed
    [cycle] = json.loads(orchestrator("cycle", "list", "--json"))
    assert (cycle["cycle"], cycle["state"]) == (0, "promoted")
    reply = httpx.post(
        f"{instance.policy_url}/v1/chat/completions",
        json={"model": "policy-live", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["system_fingerprint"] == digests(instance.database_url, 0)["initial_policy"]


def test_too_few_comparisons_end_the_run_as_skipped(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    file = write_comparisons(tmp_path / "few.jsonl", 0, 30)
    orchestrator("import", "--question", "helpful", "--source", "tiny", str(file))
    printed = orchestrator("cycle", "run", "--config", str(config_file))
    assert "Skipped: 30 of 40" in printed
    state = last_run(instance)["state"]
    assert isinstance(state, dict)
    assert (state["type"], state["name"]) == ("CANCELLED", "Skipped: 30 of 40")
    assert [cycle["cycle"] for cycle in json.loads(orchestrator("cycle", "list", "--json"))] == [0]


def test_a_cycle_killed_in_three_ways_repeats_no_finished_stage(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    file = write_comparisons(tmp_path / "enough.jsonl", 30, 50)
    orchestrator("import", "--question", "helpful", "--source", "tiny", str(file))
    # 1. The flow dies; its training run on the gpu pool goes on, and the next run finds what it made.
    assert "Crashed" in run_and_kill(instance, config_file, "train_preference_model", "flow")
    # What comes in now is too late for the open cycle: 30 + 50 comparisons stay its cut-off.
    late = write_comparisons(tmp_path / "late.jsonl", 80, 20)
    orchestrator("import", "--question", "helpful", "--source", "tiny", str(late))
    # 2. The job dies: the run fails and says so.
    assert "ended by SIGKILL" in run_and_kill(instance, config_file, "train_policy", "job")
    report = shown_report(instance, 1)
    assert "**Stopped** at `train_policy` by a crash (JobFailed): Job train_policy was ended by SIGKILL (some" in report
    assert f"[at the desk]({instance.feedback_url}/desk/cycles/1/report)" in report
    # 3. The worker dies, and with it the run it had; its successor sets the run to Crashed.
    assert "evaluate-policies ended as Crashed" in run_and_kill(instance, config_file, "evaluate_policy", "worker")
    # It could not write why; what waited for it knows.
    stop = (
        "**Stopped** at `evaluate_policy` by a crash (JobFailed): evaluate-policies ended as Crashed: Its worker ended"
    )
    assert stop in shown_report(instance, 1)
    # 4. Left alone, the cycle ends.
    printed = orchestrator("cycle", "run", "--config", str(config_file))
    assert "freeze_comparisons found, not repeated" in printed
    assert "train_policy found, not repeated" in printed

    cycles = json.loads(orchestrator("cycle", "list", "--json"))
    assert [cycle["cycle"] for cycle in cycles] == [0, 1]
    assert cycles[1]["state"] in ("promoted", "refused")
    assert stages_done(instance.database_url, 1) == ONCE | {"write_report": 3}
    shown = json.loads(orchestrator("cycle", "show", "1", "--json"))
    assert "train_policy" not in {stop["stage"] for stop in shown["stops"]}
    # Killed attempts are not shown as running for ever.
    assert {stage["state"] for stage in shown["stages"]} == {"done", "found", "failed"}
    assert shown["comparison_set"]["num_comparisons"] == 80
    # PPO was watched with the held-out part of the same set.
    assert shown["training"]["logp_accuracy"]["pairs"]["helpful"] > 0
    # With more than MIN_COMPARISONS fresh the next run would begin a cycle; 20 are too few.
    assert "Skipped: 20 of 40" in orchestrator("cycle", "run", "--config", str(config_file))


def test_the_ui_shows_telling_names_and_the_report(instance: Instance, orchestrator: Orchestrator) -> None:
    api = PrefectApi(instance.prefect_api_url)
    of_cycles = {"flows": {"name": {"any_": ["cycle", "train-policy"]}}, "limit": 100}
    names = {run["name"] for run in api.flow_runs(of_cycles)}
    assert "cycle 1: tiny" in names
    assert "cycle 1: tiny, train policy" in names
    assert shown_report(instance, 1).startswith("# Cycle 1: tiny")
    assert orchestrator("cycle", "show", "1").startswith("# Cycle 1: tiny")


def test_the_ui_shows_how_far_each_job_came_and_the_course_of_ppo(instance: Instance) -> None:
    shown = prefect(instance, "POST", "/artifacts/latest/filter", json={}).json()
    by_key = {artifact["key"]: artifact for artifact in shown}
    bar = by_key["progress-train-policy"]
    assert (bar["type"], bar["data"]) == ("progress", 100)
    assert bar["description"].startswith("cycle 1, train policy: ")
    rows = json.loads(by_key["ppo-course"]["data"])
    # Six iterations (tests/flows/tiny_cycle.py), whatever was killed on the way.
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert all(row["score"] and row["KL"] for row in rows)


def test_ppo_is_watched_after_its_end_by_the_rows_alone(instance: Instance, tmp_path: Path) -> None:
    printed = run_command(tmp_path, "cycle", "watch", DATABASE_URL=instance.database_url)
    assert printed.startswith("PPO, cycle 1, ")
    assert printed.splitlines()[-1].startswith("ended after 48 samples")  # 6 iterations of 8 replies


def test_cancelling_a_run_that_has_just_ended_leaves_it_as_it_ended(instance: Instance) -> None:
    ended = last_run(instance)
    assert ended["state_type"] in ENDED
    with temporary_settings({PREFECT_API_URL: instance.prefect_api_url}):
        asyncio.run(cancel(UUID(str(ended["id"]))))
    assert last_run(instance)["state"] == ended["state"]


def open_cycle(orchestrator: Orchestrator) -> bool:
    return any(cycle["state"] == "open" for cycle in json.loads(orchestrator("cycle", "list", "--json")))


def once(instance: Instance, number: int) -> dict[str, int]:
    """What a whole cycle with an initial policy of its own makes, each exactly once."""
    asked = {"check_fresh_agreement": 1} if had_a_model_before(instance.database_url, number) else {}
    return ONCE | {"prepare_initial_policy": 1} | asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kills"),
    [
        (1, [("train_preference_model", "job"), ("train_policy", "worker"), ("evaluate_policy", "flow")]),
        (2, [("train_preference_model", "worker"), ("train_policy", "flow"), ("evaluate_policy", "job")]),
    ],
)
def test_every_other_kill_of_a_training_stage(
    seed: int, kills: list[tuple[str, str]], instance: Instance, orchestrator: Orchestrator, config_file: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    before = begin(orchestrator, config_file, tmp_path, seed)
    options = ("--set", f"seed={seed}")
    for stage, victim in kills:
        run_and_kill(instance, config_file, stage, victim, *options)  # type: ignore[arg-type]
    orchestrator("cycle", "run", "--config", str(config_file), *options)
    # Another seed is another initial policy. A killed flow reports nothing, the other two do.
    assert stages_done(instance.database_url, before) == {**once(instance, before), "write_report": 3}


@pytest.mark.slow
def test_a_cancelled_cycle_ends_its_training_too_and_is_gone_on_with(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    before = begin(orchestrator, config_file, tmp_path, 3)
    api = PrefectApi(instance.prefect_api_url)
    # Long enough that the training cannot end by itself before the cancellation reaches it.
    options = ("--config", str(config_file), "--set", "seed=3", "--set", "ppo.iterations=60")
    printed = orchestrator("cycle", "run", "--no-wait", *options)
    flow_run_id = printed.strip().rpartition("/")[2]
    wait_for("the job of train_policy", lambda: job_of(instance.home, "train_policy") is not None)
    api.cancel(flow_run_id)
    wait_for("the cycle's run to be cancelled", lambda: api.state(flow_run_id).type == "CANCELLED")
    wait_for("its job to end", lambda: job_of(instance.home, "train_policy") is None)
    wait_for(
        "the training run to be cancelled",
        lambda: str(last_run(instance, "train-policy")["state_type"]) in ("CANCELLED", "CRASHED"),
    )
    orchestrator("cycle", "run", *options)
    assert stages_done(instance.database_url, before) == once(instance, before)


@pytest.mark.slow
def test_the_cpu_worker_and_the_prefect_server_die_too(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    before = begin(orchestrator, config_file, tmp_path, 4)
    options = ("--set", "seed=4")
    run_and_kill(instance, config_file, "train_preference_model", "worker-cpu", *options)
    # A run may outlive the server's restart; whether it does is not promised, that the next run ends is.
    run_and_kill(instance, config_file, "train_policy", "prefect-server", *options, statuses=(0, 2))
    if open_cycle(orchestrator):
        orchestrator("cycle", "run", "--config", str(config_file), *options)
    done = stages_done(instance.database_url, before)
    # The run that met the server's restart may have reported how it ended.
    assert done.pop("write_report") in (1, 2)
    assert done | {"write_report": 1} == once(instance, before)


def test_an_interrupted_cycle_ends_with_the_same_artifacts_as_one_left_alone(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    """Cycle 1 of the instance was killed three times; here it is run inline, on a database and home of its own."""
    assert instance.postgres is not None
    cycles = json.loads(orchestrator("cycle", "list", "--json"))
    if len(cycles) < 2:
        pytest.skip("runs after the test that kills cycle 1")
    with contextlib.closing(instance.postgres.connect("postgres")) as connection:
        connection.cursor().execute("create database left_alone")
    url = instance.postgres.url_of("left_alone")
    home = tmp_path / "left alone"
    run_command(home, "migrate", DATABASE_URL=url)
    # A set names its raters by id. Other tests may have killed the instance's Postgres before, which skips ids.
    with contextlib.closing(instance.postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("select id from raters where handle = 'tiny/anonymous'")
        (rater_id,) = cursor.fetchone() or (1,)
    with contextlib.closing(instance.postgres.connect("left_alone")) as connection:
        connection.cursor().execute("alter table raters alter column id restart with %s", (rater_id,))
    for name, start, count in (("few", 0, 30), ("enough", 30, 50)):
        file = write_comparisons(tmp_path / f"{name}.jsonl", start, count)
        run_command(home, "import", "--question", "helpful", "--source", "tiny", str(file), DATABASE_URL=url)
    printed = run_command(home, "cycle", "run", "--inline", "--config", str(config_file), DATABASE_URL=url)
    assert "train_policy" in printed
    alone, killed = digests(url, 1), digests(instance.database_url, 1)
    for kind in ("initial_policy", "comparison_set", "preference_model", "prompt_set", "snapshot", "evaluation"):
        assert alone[kind] == killed[kind], kind


@pytest.mark.slow
def test_a_run_that_gives_no_sign_of_life_is_set_to_crashed(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    """A stopped process is what a vanished machine looks like from the server: silence."""
    before = begin(orchestrator, config_file, tmp_path, 5)
    api = PrefectApi(instance.prefect_api_url)
    options = ("--config", str(config_file), "--set", "seed=5")
    flow_run_id = orchestrator("cycle", "run", "--no-wait", *options).strip().rpartition("/")[2]
    wait_for("a job", lambda: job_of(instance.home, "train_preference_model") is not None)
    # Its first sign of life is due within 30 s; only then does the automation begin to wait for the next.
    wait_for("a heartbeat", lambda: heartbeats(instance, flow_run_id) > 0, 120)
    silent = flow_process(instance)
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        wait_for("the automation", lambda: api.state(flow_run_id).type == "CRASHED", 240)
        assert "No sign of life" in api.state(flow_run_id).message
    finally:
        os.kill(silent.pid, signal.SIGKILL)
    orchestrator("cycle", "run", *options)
    assert stages_done(instance.database_url, before) == once(instance, before)


def heartbeats(instance: Instance, flow_run_id: str) -> int:
    found = prefect(
        instance,
        "POST",
        "/events/filter",
        json={
            "filter": {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "any_resource": {"id": [f"prefect.flow-run.{flow_run_id}"]},
            }
        },
    )
    assert found.status_code == 200, found.text
    total: int = found.json()["total"]
    return total
