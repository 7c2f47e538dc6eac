"""Deciding, going back and telling what is live through a real Prefect server: forms, states, the standing artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.instance.up import Instance
from tests.flows.prefect_calls import prefect
from tests.flows.tiny_cycle import Orchestrator, begin
from tests.orchestrator.web.browsing import Browser, forms
from tests.waiting import wait_for

ANY_SNAPSHOT = (
    "min_pm_accuracy=0.0", "min_score_gain=-1000.0", "min_gain_over_live=-1000.0", "min_gain_by_question=-1000.0",
    "max_kl_nats=1000.0", "contradicting_week=report",
)  # fmt: skip


ACT: dict[str, Any] = {"reason": "it shouts", "name": "Ada"}


def start(api: PrefectApi, flow: str, **parameters: Any) -> Any:
    """Run a deployment of a flow to its end; its last state."""
    flow_run_id = api.start_run(f"{flow}/{flow}", parameters)
    wait_for(f"{flow} to end", lambda: api.state(flow_run_id).ended, 120)
    return api.state(flow_run_id)


@pytest.mark.slow
def test_a_cycle_waits_and_is_decided_by_a_form_and_taken_back_by_another(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    number = let_one_wait(orchestrator, config_file, tmp_path, 61)
    api = PrefectApi(instance.prefect_api_url)
    before = json.loads(orchestrator("live", "--json"))["live"]
    assert f"Waits for a decision**: cycle {number}, snapshot " in (api.artifact("live") or "")

    state = start(api, "decide-promotion", cycle=number, decision="promote", reason="shorter", name="Ada Lovelace")
    assert (state.type, state.name) == ("COMPLETED", "Promoted")
    of_cycles = {"flows": {"name": {"any_": ["cycle"]}}}
    [waited] = [run for run in api.flow_runs(of_cycles) if run["name"].startswith(f"cycle {number}: tiny")]
    assert waited["state_name"] == "Promoted"
    late = start(api, "decide-promotion", cycle=number, decision="refuse", reason="no", name="Bob")
    assert late.type == "FAILED"
    assert "decided already: Ada Lovelace (as typed into a form) promoted it" in late.message
    live = json.loads(orchestrator("live", "--json"))["live"]
    assert (live["cycle"], live["identity"]) == (number, "claimed")
    assert live["why"].startswith("approved: shorter; all ")
    assert "Why**: approved: shorter; all " in (api.artifact("live") or "")
    health = httpx.get(f"{instance.policy_url}/health").json()
    assert (health["live"], health["deployment"]["decided_by"]) == (live["digest"], "Ada Lovelace")

    state = start(api, "roll-back", reason="it shouts", name="Ada Lovelace")
    assert (state.type, state.name) == ("COMPLETED", "Rolled back")
    health = httpx.get(f"{instance.policy_url}/health").json()
    assert (health["live"], health["deployment"]["why"]) == (before["digest"], "rolled back: it shouts")
    assert "Why**: rolled back: it shouts" in (api.artifact("live") or "")
    assert orchestrator("promote", live["digest"][:20], "--reason", "not so bad") == (
        f"Policy {live['digest'][:19]} is live.\n"
    )
    assert httpx.get(f"{instance.policy_url}/health").json()["live"] == live["digest"]
    assert "put live by hand: not so bad" in (api.artifact("live") or "")
    assert f"Policy {before['digest'][:19]} is live." in orchestrator("roll-back", "--reason", "as it was")


@pytest.mark.slow
def test_the_forms_refuse_at_submission_what_their_schema_can_tell(instance: Instance) -> None:
    schema = prefect(instance, "GET", "/deployments/name/decide-promotion/decide-promotion").json()[
        "parameter_openapi_schema"
    ]
    fields = schema["properties"]
    assert sorted(fields, key=lambda name: fields[name]["position"]) == ["cycle", "decision", "reason", "name"]
    assert fields["decision"]["enum"] == ["promote", "refuse"]
    assert fields["cycle"]["type"] == "integer"
    assert all(field["description"] for field in fields.values())
    assert sorted(schema["required"]) == sorted(fields)
    assert fields["reason"]["minLength"] == fields["name"]["minLength"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flow", "asked", "said"),
    [
        (
            "promote-policy/promote-policy",
            ACT | {"policy": "deadbeef"},
            "No artifact 'deadbeef'; `orchestrator artifacts` lists them.",
        ),
        (
            "cancel-cycle/cancel-cycle",
            ACT | {"cycle": 977},
            "Cycle 977 does not exist; only an open cycle can be cancelled.",
        ),
        ("cycle/weekly", {"config": "/no/such.toml"}, "/no/such.toml"),
    ],
)
def test_a_person_s_mistake_ends_a_form_s_run_in_one_line(
    instance: Instance, flow: str, asked: dict[str, Any], said: str
) -> None:
    api = PrefectApi(instance.prefect_api_url)
    flow_run_id = api.start_run(flow, asked)
    wait_for(f"{flow} to end", lambda: api.state(flow_run_id).ended, 120)
    state = api.state(flow_run_id)
    assert (state.type, state.name) == ("FAILED", "Failed")
    assert said in state.message
    assert "exception" not in state.message
    only = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}}

    def logged() -> list[str]:
        return [line["message"] for line in prefect(instance, "POST", "/logs/filter", json=only).json()]

    wait_for("the run's log", lambda: any(said in line for line in logged()), 30)
    assert not any("Traceback" in line for line in logged())


@pytest.mark.slow
def test_what_waits_too_long_is_looked_for_whether_or_not_a_cycle_runs(instance: Instance) -> None:
    expiry = prefect(instance, "GET", "/deployments/name/expire-approvals/expire-approvals").json()
    assert [schedule["schedule"]["cron"] for schedule in expiry["schedules"]] == ["*/10 * * * *"]
    assert expiry["work_pool_name"] == "cpu"
    api = PrefectApi(instance.prefect_api_url)
    for flow in ("expire-approvals", "measure-elo"):  # none that falls due now shall come between
        found = prefect(instance, "GET", f"/deployments/name/{flow}/{flow}").json()
        prefect(instance, "POST", f"/deployments/{found['id']}/pause_deployment").raise_for_status()
    nothing = {"flow_runs": {"state": {"name": {"any_": ["Nothing to do"]}}}}
    said = start(api, "measure-elo")
    assert (said.type, said.name, said.message) == ("COMPLETED", "Nothing to do", "People said nothing new.")
    for _ in range(3):
        state = start(api, "expire-approvals")
        assert (state.type, state.name) == ("COMPLETED", "Nothing to do")
    # Of the runs that found nothing the newest is left, and those of other flows; the artifact was kept up to date.
    left = [run["name"] for run in api.flow_runs(nothing)]
    assert sorted(left) == ["look for what nobody decided", "what people said since"]
    assert "**Live**: " in (api.artifact("live") or "")


@pytest.mark.slow
def test_what_the_desk_decides_a_flow_carries_out_and_the_command_is_told(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    number = let_one_wait(orchestrator, config_file, tmp_path, 62)
    token = orchestrator("operator", "add", f"Ada {number}").split("token: ")[1].splitlines()[0]
    desk = Browser(instance.feedback_url)
    desk.client.post("/desk/sign-in", data={"token": token})
    [waits] = [form.action for form in forms(desk.get("/desk/live")) if form.action.startswith("/desk/approvals/")]
    shown = desk.send(desk.get("/desk/live"), waits, answer="refuse", reason="too long")
    assert f"Cycle {number}: Ada {number} (proven by a token) refused it" in shown.text
    wait_for("the cycle to be closed", lambda: state_of(orchestrator, number) == "refused", 180)
    told = orchestrator("cycle", "decide", str(number), "promote", "--reason", "good", status=2)
    assert f"decided already: Ada {number} (proven by a token) refused it" in told
    assert "too long" in (PrefectApi(instance.prefect_api_url).artifact("live") or "")


@pytest.mark.slow
def test_what_nobody_decides_is_refused_by_a_flow_of_its_own(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    number = let_one_wait(orchestrator, config_file, tmp_path, 63, "--set", "approval.timeout_hours=0.0001")
    before = json.loads(orchestrator("live", "--json"))["live"]["digest"]
    start(PrefectApi(instance.prefect_api_url), "expire-approvals")
    wait_for("the cycle to be closed", lambda: state_of(orchestrator, number) == "refused", 180)
    live = json.loads(orchestrator("live", "--json"))
    assert live["live"]["digest"] == before
    assert live["last_cycle"]["why"].startswith("Promotion refused: nobody decided until ")


def let_one_wait(orchestrator: Orchestrator, config_file: Path, folder: Path, seed: int, *options: str) -> int:
    """Run a cycle to where it waits; its number."""
    number = begin(orchestrator, config_file, folder, seed)
    words = ["--set", f"seed={seed}", "--set", "approval.required=true", "--set", "ppo.learning_rate=0.001", *options]
    words += [word for gate in ANY_SNAPSHOT for word in ("--set", f"gates.{gate}")]
    assert "Waiting for approval" in orchestrator("cycle", "run", "--config", str(config_file), *words)
    return number


def state_of(orchestrator: Orchestrator, number: int) -> str:
    cycles = json.loads(orchestrator("cycle", "list", "--json"))
    return str(next(cycle["state"] for cycle in cycles if cycle["cycle"] == number))
