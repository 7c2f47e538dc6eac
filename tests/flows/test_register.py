"""What `orchestrator register` puts on the Prefect server: pools, deployments, schedule, form, automation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.cancelling import cancel_cycle
from flows.cycle import cycle
from flows.deciding import BY_HAND, expire_approvals
from flows.forms import FIELDS, TITLES
from flows.healing import AUTOMATION
from flows.register import TAG, schedule_of
from flows.robustness import robustness
from flows.run_stage import run_stage
from orchestrator.config import CycleConfig
from orchestrator.errors import ConfigError
from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.instance.up import Instance
from tests.flows.prefect_calls import prefect
from tests.flows.tiny_cycle import run_command
from tests.waiting import wait_for


def get(instance: Instance, path: str) -> Any:
    response = prefect(instance, "GET", path)
    assert response.status_code == 200, response.text
    return response.json()


def schedules(instance: Instance, name: str = "weekly") -> list[tuple[str, str, bool]]:
    """Cron, time zone and whether it is active, of each schedule."""
    found = get(instance, f"/deployments/name/cycle/{name}")["schedules"]
    return [(each["schedule"]["cron"], each["schedule"]["timezone"], each["active"]) for each in found]


def test_the_schedule_and_its_time_zone_are_the_configuration_s(config_file: Path) -> None:
    schedule = schedule_of(config_file)
    assert (schedule.cron, schedule.timezone) == ("30 5 * * 2", "Europe/Berlin")


def test_by_default_the_cycle_is_weekly() -> None:
    assert CycleConfig.model_validate({"initial_policy": {"path": "x"}}).schedule.cron == "0 6 * * 1"


def test_a_broken_configuration_is_refused_before_anything_is_registered(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[initial_policy]\npath = 'x'\n[ppo]\nlearning_rat = 1\n")
    with pytest.raises(ConfigError, match=r"ppo\.learning_rat: unknown key"):
        schedule_of(tmp_path / "broken.toml")


def start(instance: Instance, flow: str, **parameters: Any) -> httpx.Response:
    """What Prefect says to a form that is submitted, or to `prefect deployment run`."""
    found = get(instance, f"/deployments/name/{flow}")["id"]
    return prefect(instance, "POST", f"/deployments/{found}/create_flow_run", json={"parameters": parameters})


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["cycle/weekly", "robustness/robustness"])
def test_the_form_has_typed_and_described_fields_in_order(instance: Instance, deployment: str) -> None:
    schema = get(instance, f"/deployments/name/{deployment}")["parameter_openapi_schema"]
    fields = schema["properties"]
    in_order = sorted(fields, key=lambda name: fields[name]["position"])
    assert in_order[0] == "configuration"
    assert in_order[-3:] == ["fresh", "overrides", "config"]
    assert set(in_order[1:-3]) - {"comparisons"} == set(FIELDS) & set(in_order)
    assert all(field["type"] and field["description"] and field["title"] != name for name, field in fields.items())
    assert "Unit: rollouts; at least 1." in fields["iterations"]["description"]
    assert "(`ppo.iterations`; 40 where it has none)" in fields["iterations"]["description"]
    assert not schema.get("required")


@pytest.mark.slow
def test_a_form_says_what_it_does_and_leads_to_what_is_live(instance: Instance) -> None:
    told = get(instance, "/deployments/name/roll-back/roll-back")
    assert told["description"] == (
        "Go back to what was live before: policy, preference model and template together, within seconds.\n\n"
        "[What is live, and where the loop is](/artifacts/key/live)"
    )
    titles = {name: field["title"] for name, field in told["parameter_openapi_schema"]["properties"].items()}
    assert titles == {"reason": "Why", "name": "Your name", "policy": "Policy", "cycle": "Cycle"}


def test_no_run_of_a_form_or_a_schedule_is_named_by_chance() -> None:
    """Trainings are named by the cycle that starts them."""
    assert [
        flow.name for flow in (cycle, robustness, cancel_cycle, expire_approvals, *BY_HAND) if not flow.flow_run_name
    ] == []


def test_every_field_that_is_stated_is_on_the_cycle_s_form() -> None:
    assert set(FIELDS) <= set(cycle.parameters.properties)
    forms = (cycle, robustness, run_stage)
    assert set().union(*(flow.parameters.properties for flow in forms)) == set(TITLES)


@pytest.mark.slow
def test_the_form_offers_the_known_configurations_and_keeps_to_their_limits(
    instance: Instance, config_file: Path
) -> None:
    run_command(instance.home, "register", "--config", str(config_file))
    (instance.home / "configs" / "dropped.toml").write_text(config_file.read_text())
    run_command(instance.home, "register", "--no-schedule")
    found = get(instance, "/deployments/name/cycle/weekly")
    assert found["parameters"] == {"configuration": "tiny"}
    assert found["parameter_openapi_schema"]["properties"]["configuration"]["enum"] == ["dropped", "tiny"]
    for wrong, said in (
        ({"configuration": "tinny"}, "is not one of"),
        ({"iterations": 0}, "less than the minimum of 1"),
        ({"min_pm_accuracy": 1.5}, "greater than the maximum of 1"),
        ({"stop_at_kl_nats": 0}, "less than or equal to the minimum of 0"),
        ({"kl_coef": "much"}, "is not valid under any of the given schemas"),
    ):
        refused = start(instance, "cycle/weekly", **wrong)
        assert refused.status_code == 409, refused.text
        assert said in refused.text
        assert next(iter(wrong)) in refused.text


@pytest.mark.slow
def test_a_default_of_an_earlier_version_becomes_a_configuration_by_name(instance: Instance, config_file: Path) -> None:
    found = get(instance, "/deployments/name/cycle/weekly")["id"]
    url = f"/deployments/{found}"
    assert prefect(instance, "PATCH", url, json={"parameters": {"config": str(config_file)}}).status_code == 204
    run_command(instance.home, "register")
    assert get(instance, "/deployments/name/cycle/weekly")["parameters"] == {"configuration": "tiny"}


@pytest.mark.slow
def test_training_has_deployments_of_its_own_on_the_gpu_pool(instance: Instance) -> None:
    for flow in ("train-preference-model", "train-policy", "evaluate-policies", "robustness"):
        assert get(instance, f"/deployments/name/{flow}/{flow}")["work_pool_name"] == "gpu"
    assert get(instance, "/deployments/name/cycle/weekly")["work_pool_name"] == "cpu"


@pytest.mark.slow
def test_what_is_registered_stays_until_it_is_taken_away(instance: Instance, config_file: Path) -> None:
    before = get(instance, "/deployments/name/cycle/weekly")["id"]
    run_command(instance.home, "register", "--config", str(config_file))
    try:
        printed = run_command(instance.home, "register")
        after = get(instance, "/deployments/name/cycle/weekly")
        assert after["id"] == before
        assert after["parameters"] == {"configuration": "tiny"}
        assert schedules(instance) == [("30 5 * * 2", "Europe/Berlin", True)]
        assert "schedule of cycle/weekly: 30 5 * * 2 Europe/Berlin" in printed
        assert named(instance, AUTOMATION) == 1
    finally:
        printed = run_command(instance.home, "register", "--no-schedule")
    assert schedules(instance) == []
    assert "schedule of cycle/weekly: none; cycles begin by hand" in printed
    assert get(instance, "/deployments/name/cycle/weekly")["parameters"] == {"configuration": "tiny"}


def named(instance: Instance, name: str) -> int:
    """How many automations have the name."""
    found = prefect(instance, "POST", "/automations/filter", json={}).json()
    return sum(automation["name"] == name for automation in found)


@pytest.mark.slow
def test_the_scheduler_plans_the_runs_of_a_schedule(instance: Instance, config_file: Path) -> None:
    run_command(instance.home, "register", "--config", str(config_file), "--name", "planned")
    try:
        found = get(instance, "/deployments/name/cycle/planned")["id"]
        of_it = {"deployments": {"id": {"any_": [found]}}}
        wait_for("the plan", lambda: len(PrefectApi(instance.prefect_api_url).flow_runs(of_it)) >= 3)
    finally:
        run_command(instance.home, "register", "--remove", "planned")


@pytest.mark.slow
def test_a_schedule_paused_in_the_ui_stays_paused(instance: Instance, config_file: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.toml"
    changed.write_text(config_file.read_text().replace("30 5 * * 2", "30 7 * * 2"))
    run_command(instance.home, "register", "--config", str(config_file), "--name", "paused")
    found = get(instance, "/deployments/name/cycle/paused")
    [schedule] = found["schedules"]
    url = f"/deployments/{found['id']}"
    assert prefect(instance, "PATCH", f"{url}/schedules/{schedule['id']}", json={"active": False}).status_code == 204
    assert prefect(instance, "POST", f"{url}/pause_deployment").status_code == 200
    printed = run_command(instance.home, "register", "--config", str(changed), "--name", "paused")
    assert "30 7 * * 2 Europe/Berlin (paused)" in printed
    assert schedules(instance, "paused") == [("30 7 * * 2", "Europe/Berlin", False)]
    assert get(instance, "/deployments/name/cycle/paused")["paused"]
    run_command(instance.home, "register", "--remove", "paused")
    assert prefect(instance, "GET", "/deployments/name/cycle/paused").status_code == 404
    assert "nothing was removed" in run_command(instance.home, "register", "--remove", "paused", status=2)


@pytest.mark.slow
def test_deployments_of_earlier_versions_do_not_stay_behind(instance: Instance) -> None:
    flow = get(instance, "/deployments/name/train-policy/train-policy")["flow_id"]
    created = prefect(
        instance,
        "POST",
        "/deployments/",
        json={"name": "gpu", "flow_id": flow, "tags": [TAG], "work_pool_name": "gpu"},
    )
    assert created.status_code == 201, created.text
    assert "removed train-policy/gpu" in run_command(instance.home, "register")
    assert prefect(instance, "GET", "/deployments/name/train-policy/gpu").status_code == 404


@pytest.mark.slow
def test_another_instance_s_server_is_not_written_to(instance: Instance, database_url: str, tmp_path: Path) -> None:
    """A fresh database is another instance, unless a person says that the server is its own."""
    env = {"DATABASE_URL": database_url, "PREFECT_API_URL": instance.prefect_api_url}
    before = get(instance, "/deployments/name/cycle/weekly")["updated"]
    for words in (("register", "--no-schedule"), ("register", "--remove", "weekly"), ("worker", "--pool", "cpu")):
        printed = run_command(tmp_path, *words, status=2, **env)
        assert "belongs to instance" in printed
        assert str(instance.home / "prefect") in printed
        assert "`orchestrator register --claim`" in printed
    assert get(instance, "/deployments/name/cycle/weekly")["updated"] == before
    try:
        run_command(tmp_path, "register", "--claim", **env)
        assert "belongs to instance" in run_command(instance.home, "register", status=2)
    finally:
        run_command(instance.home, "register", "--claim")


@pytest.mark.slow
def test_the_automation_crashes_a_run_without_heartbeat(instance: Instance) -> None:
    [automation] = [
        found
        for found in prefect(instance, "POST", "/automations/filter", json={}).json()
        if found["name"] == AUTOMATION
    ]
    assert automation["enabled"]
    assert automation["trigger"]["posture"] == "Proactive"
    assert automation["trigger"]["within"] == 90  # three heartbeats of 30 s
    assert automation["actions"][0]["state"] == "CRASHED"


def test_without_a_server_the_command_says_how_to_get_one(tmp_path: Path) -> None:
    printed = run_command(tmp_path, "register", status=2)
    assert "orchestrator up" in printed
