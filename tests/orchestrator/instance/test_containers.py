"""docker-compose.yml and Dockerfile: what the containers run is what an instance runs as plain processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli
from orchestrator.instance.prefect_api import prefect_environment
from orchestrator.instance.up import Instance
from orchestrator.settings import RENAMED
from tests.paths import PROJECT_ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "rlhf-orchestrator"}


def without_address(words: list[str]) -> list[str]:
    """The command without --host and --port, which differ between a container and a plain process."""
    kept = list(words)
    for option in ("--host", "--port"):
        if option in kept:
            place = kept.index(option)
            del kept[place : place + 2]
    return kept


def words_of(service: dict[str, Any]) -> list[str]:
    return [*service.get("entrypoint", ["python", "-m", "orchestrator.cli"]), *service["command"]]


@pytest.mark.slow
def test_every_service_of_an_instance_is_a_container_with_the_same_command(instance: Instance) -> None:
    for name, child in instance.children.items():
        started = ["python", *child.command[1:]]
        assert without_address(words_of(OURS[name])) == without_address(started), name
    # Beside them only what an instance does once, when it starts.
    assert OURS.keys() - instance.children.keys() == {"migrate", "register"}


@pytest.mark.parametrize("name", sorted(name for name in OURS if name != "prefect-server"))
def test_the_command_line_knows_the_command_and_its_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *options = OURS[name]["command"]
    module = f"orchestrator.commands.{cli.COMMANDS[command][0]}"
    seen: list[Any] = []
    monkeypatch.setattr(f"{module}.run", lambda args: seen.append(args) or 0)
    assert cli.main([command, *(re.sub(r"\$\{\w+:-(.*?)\}", r"\1", option) for option in options)]) == 0
    assert len(seen) == 1


def test_the_image_starts_our_command_line() -> None:
    assert 'ENTRYPOINT ["python", "-m", "orchestrator.cli"]' in (PROJECT_ROOT / "Dockerfile").read_text()


def test_pages_are_offered_on_loopback_unless_told_otherwise() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 2  # the Prefect UI and the feedback app
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)


def test_links_for_people_lead_to_an_address_outside_the_containers() -> None:
    shown = [service["environment"].get("ORCHESTRATOR_FEEDBACK_URL") for service in OURS.values()]
    shown += [OURS["prefect-server"]["environment"]["PREFECT_UI_URL"]]
    inside = [f"//{name}:" for name in COMPOSE["services"]]
    assert [url for url in shown if url is not None and any(name in url for name in inside)] == []
    assert "${ORCHESTRATOR_FEEDBACK_URL:-http://127.0.0.1:8080}" in shown


def test_every_variable_is_one_that_the_product_reads() -> None:
    settings = (PROJECT_ROOT / "orchestrator" / "settings.py").read_text()
    examples = (PROJECT_ROOT / "examples").glob("*.toml")
    known = settings + "".join(file.read_text() for file in examples)
    names = {name for service in OURS.values() for name in service["environment"] if name.startswith("ORCHESTRATOR_")}
    assert {name for name in names if name not in known} <= {"ORCHESTRATOR_DATA"}


def test_the_prefect_server_is_set_up_as_in_an_instance() -> None:
    in_instance = prefect_environment(Path("/home"))
    for name, value in COMPOSE["services"]["prefect-server"]["environment"].items():
        # An instance's server and its UI are at one address.
        if name not in ("PREFECT_HOME", "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_UI_URL"):
            assert in_instance[name] == value, name
    for name in ("PREFECT_WORKER_QUERY_SECONDS", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"):
        assert in_instance[name] == COMPOSE["services"]["worker-cpu"]["environment"][name]


def test_both_databases_are_made() -> None:
    postgres = COMPOSE["services"]["postgres"]
    assert postgres["environment"]["POSTGRES_DB"] == "orchestrator"
    assert COMPOSE["configs"]["prefect-database"]["content"].strip() == "create database prefect;"
    url = COMPOSE["services"]["prefect-server"]["environment"]["PREFECT_API_DATABASE_CONNECTION_URL"]
    assert url.endswith("@postgres/prefect")


def test_a_worker_keeps_its_name_over_restarts() -> None:
    for name in ("worker-cpu", "worker-gpu"):
        assert OURS[name]["hostname"] == name


def test_what_the_env_file_says_of_serving_reaches_the_policy_server() -> None:
    environment = OURS["policy-server"]["environment"]
    for name in ("ORCHESTRATOR_DETECTOR", "ORCHESTRATOR_DETECTOR_ACTION", "ORCHESTRATOR_SERVING_PRECISION"):
        assert environment[name] == f"${{{name}:-}}"  # empty where not set, which is no detector, and float32


def test_a_renamed_variable_of_the_env_file_is_handed_on_to_be_refused() -> None:
    environment = OURS["policy-server"]["environment"]
    assert {name: environment.get(name) for name in RENAMED} == {name: f"${{{name}:-}}" for name in RENAMED}
