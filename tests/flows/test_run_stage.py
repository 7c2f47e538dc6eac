"""One stage by itself, through a real Prefect server: by the form and by the command, then the cycle goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cycles.until import STAGES
from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.instance.up import Instance
from tests.flows.kills import stages_done
from tests.flows.prefect_calls import prefect
from tests.flows.tiny_cycle import Orchestrator, begin
from tests.waiting import wait_for


@pytest.mark.slow
def test_the_form_offers_the_stages_by_name(instance: Instance) -> None:
    schema = prefect(instance, "GET", "/deployments/name/run-stage/run-stage").json()["parameter_openapi_schema"]
    assert schema["properties"]["stage"]["enum"] == list(STAGES)
    assert schema["required"] == ["stage"]
    assert all(field["title"] and field["description"] for field in schema["properties"].values())


@pytest.mark.slow
def test_a_stage_is_run_by_itself_and_the_cycle_goes_on_from_there(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    number = begin(orchestrator, config_file, tmp_path, 71)
    api = PrefectApi(instance.prefect_api_url)
    said = orchestrator("cycle", "run", "--config", str(config_file), "--set", "seed=71", "--stage", "check data")
    assert "Stage done: check data is done." in said
    assert newest(orchestrator) == (number, "open")

    def by_form(stage: str, **more: object) -> str:
        flow_run_id = api.start_run("run-stage/run-stage", {"stage": stage, **more})
        wait_for(f"{stage} to end", lambda: api.state(flow_run_id).ended, 180)
        return api.state(flow_run_id).line

    def done(stage: str) -> int:
        return stages_done(instance.database_url, number)[stage]

    # Nothing but the stage is filled in: the open cycle goes on, with its own configuration.
    assert by_form("train preference model").startswith("Stage done: train preference model is done.")
    assert (done("train_preference_model"), done("train_policy")) == (1, 0)
    assert "| train_preference_model | done |" in (api.artifact(f"cycle-{number}") or "")
    # The configuration writes no prompts of the policy's own.
    assert "has no stage write prompts; all before it is done." in by_form("write prompts")
    assert by_form("train preference model", fresh=True).startswith("Stage done")
    assert (done("train_preference_model"), done("freeze_comparisons"), done("train_policy")) == (2, 1, 0)
    orchestrator("cycle", "run", "--config", str(config_file), "--set", "seed=71")
    assert (done("train_preference_model"), done("freeze_comparisons"), done("train_policy")) == (2, 1, 1)
    assert newest(orchestrator) in ((number, "promoted"), (number, "refused"))
    assert "No cycle is open. Choose a configuration to begin one." in by_form("check data")


def newest(orchestrator: Orchestrator) -> tuple[int, str]:
    cycle = max(json.loads(orchestrator("cycle", "list", "--json")), key=lambda each: each["cycle"])
    return cycle["cycle"], cycle["state"]
