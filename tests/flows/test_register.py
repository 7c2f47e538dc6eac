"""What `orchestrator register` puts on the Prefect server: pools, deployments, schedule, form, automation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.healing import AUTOMATION
from flows.register import cycle_deployment
from orchestrator.config import CycleConfig
from orchestrator.errors import ConfigError
from orchestrator.instance.up import Instance
from tests.flows.tiny_cycle import run_command


def get(instance: Instance, path: str) -> Any:
    response = httpx.get(instance.prefect_api_url + path)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_schedule_and_its_time_zone_are_the_configuration_s(config_file: Path) -> None:
    [schedule] = cycle_deployment("weekly", config_file).schedules or []
    assert schedule.schedule is not None
    assert schedule.schedule.model_dump(include={"cron", "timezone"}) == {
        "cron": "30 5 * * 2",
        "timezone": "Europe/Berlin",
    }


def test_by_default_the_cycle_is_weekly() -> None:
    assert CycleConfig.model_validate({"initial_policy": {"path": "x"}}).schedule.cron == "0 6 * * 1"


def test_a_broken_configuration_is_refused_before_anything_is_registered(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[initial_policy]\npath = 'x'\n[ppo]\nlearning_rat = 1\n")
    with pytest.raises(ConfigError, match=r"ppo\.learning_rat: unknown key"):
        cycle_deployment("weekly", tmp_path / "broken.toml")


def test_the_form_has_typed_and_described_parameters(instance: Instance) -> None:
    schema = get(instance, "/deployments/name/cycle/weekly")["parameter_openapi_schema"]
    fields = schema["properties"]
    assert sorted(fields, key=lambda name: fields[name]["position"]) == ["config", "overrides", "fresh"]
    assert fields["config"]["type"] == "string"
    assert fields["overrides"]["type"] == "array"
    assert fields["overrides"]["items"] == {"type": "string"}
    assert fields["fresh"]["type"] == "boolean"
    assert all(field["description"] for field in fields.values())
    assert schema["required"] == ["config"]


def test_training_has_deployments_of_its_own_on_the_gpu_pool(instance: Instance) -> None:
    for flow in ("train-preference-model", "train-policy", "evaluate-policies", "robustness"):
        assert get(instance, f"/deployments/name/{flow}/gpu")["work_pool_name"] == "gpu"
    assert get(instance, "/deployments/name/cycle/weekly")["work_pool_name"] == "cpu"


def test_registering_again_keeps_what_is_there_and_sets_the_schedule(instance: Instance, config_file: Path) -> None:
    before = get(instance, "/deployments/name/cycle/weekly")["id"]
    run_command(instance.home, "register", "--config", str(config_file))
    try:
        after = get(instance, "/deployments/name/cycle/weekly")
        assert after["id"] == before
        assert after["parameters"] == {"config": str(config_file)}
        [schedule] = after["schedules"]
        assert schedule["schedule"]["timezone"] == "Europe/Berlin"
        assert schedule["active"]
        named = [
            automation
            for automation in httpx.post(f"{instance.prefect_api_url}/automations/filter", json={}).json()
            if automation["name"] == AUTOMATION
        ]
        assert len(named) == 1
    finally:
        run_command(instance.home, "register")


def test_the_automation_crashes_a_run_without_heartbeat(instance: Instance) -> None:
    [automation] = [
        found
        for found in httpx.post(f"{instance.prefect_api_url}/automations/filter", json={}).json()
        if found["name"] == AUTOMATION
    ]
    assert automation["enabled"]
    assert automation["trigger"]["posture"] == "Proactive"
    assert automation["trigger"]["within"] == 90  # three heartbeats of 30 s
    assert automation["actions"][0]["state"] == "CRASHED"


def test_without_a_server_the_command_says_how_to_get_one(tmp_path: Path) -> None:
    printed = run_command(tmp_path, "register", status=2)
    assert "orchestrator up" in printed
