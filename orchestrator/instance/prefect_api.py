"""A few calls to the Prefect server over HTTP, for commands that must not wait for Prefect's own import.

Prefect knows where a run is; what a cycle made is in our tables.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import httpx

from orchestrator import running_instance
from orchestrator.errors import CycleError, ServiceUnavailable
from orchestrator.http_shared.proxies import proxy_for, tls

TIMEOUT_S = 60.0
# On SQLite the server answers 503 where another of its writers came in between. On a machine with too much to do that
# happens again and again, so the call is repeated for long, at irregular intervals.
BUSY_S = 300.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
PAUSED = "PAUSED"
"""No end for Prefect; no process of ours is there, though, and by itself such a run never goes on."""


def api_url(home: Path) -> str:
    """URL of the Prefect API to speak to: `PREFECT_API_URL`, or that of the instance running on the home.

    Raises:
        ServiceUnavailable: neither is there.
    """
    running = running_instance.running(home)
    url = os.environ.get("PREFECT_API_URL") or (running.prefect_api_url if running else None)
    if url is None:
        raise ServiceUnavailable(
            f"No Prefect server: no instance runs on {home} (ORCHESTRATOR_HOME) and PREFECT_API_URL is not set."
            f"{running_instance.elsewhere(home)} Start one with `orchestrator up`."
        )
    return url


def api_url_if_any(home: Path) -> str | None:
    """The same, or None."""
    try:
        return api_url(home)
    except ServiceUnavailable:
        return None


def prefect_environment(home: Path) -> dict[str, str]:
    """Settings of Prefect for server, workers and clients of an instance; the user's own profile is ignored."""
    return {
        "PREFECT_HOME": str(home / "prefect"),
        # With a port of its own the UI would otherwise call port 4200.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # The second UI calls an outside host, and hides Resume and Cancel.
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        # On SQLite a request that read before it writes is refused where another writer came in between, and the client
        # waits 2, 4, 8 ... s. The default of 5 attempts is too few on a machine with too much to do.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        # 2.5 s from schedule to run; the default of 10 s would double the overhead of a stage.
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        # Every sign of life of a flow; the shortest that Prefect allows. See flows/healing.py.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }


class StateJson(TypedDict):
    """What Prefect tells of a state."""

    type: str
    name: str | None
    message: str | None


class FlowRunJson(TypedDict):
    """What we read of all that Prefect tells of a flow run."""

    id: str
    name: str
    state: StateJson | None
    state_type: str | None
    state_name: str | None
    expected_start_time: str
    """ISO 8601."""
    auto_scheduled: bool
    """Whether a schedule began it, and no person."""


class TaskRunJson(TypedDict):
    """What we read of all that Prefect tells of a task run."""

    id: str
    name: str
    state_type: str | None
    state_name: str
    total_run_time: float
    """Seconds."""


@dataclass(frozen=True)
class FlowRunState:
    """Where a flow run is: `type` is one of Prefect's, `name` and `message` may be ours."""

    type: str
    name: str
    message: str

    @property
    def ended(self) -> bool:
        """Whether the run will not go on."""
        return self.type in (*ENDED, PAUSED)

    @property
    def line(self) -> str:
        """The state in one line; a message that only repeats the name is left out."""
        return self.name if not self.message else f"{self.name}: {self.message}"


class PrefectApi:
    """One Prefect server, by the URL that ends in `/api`."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=self.url, timeout=timeout_s, proxy=proxy_for(self.url), verify=tls(), trust_env=False
        )

    @property
    def ui_url(self) -> str:
        """Where a person looks."""
        return self.url.removesuffix("/api")

    def start_run(self, deployment: str, parameters: Mapping[str, object]) -> str:
        """Start a run of a Prefect deployment, `flow/deployment`; returns the flow run's id.

        Raises:
            CycleError: the deployment is not registered, or it refuses the parameters.
        """
        found = self._request("GET", f"/deployments/name/{deployment}", expected=(200, 404))
        if found.status_code == 404:
            raise CycleError(
                f"Prefect at {self.ui_url} has no deployment {deployment}. Create it with `orchestrator register`."
            )
        created = self._request(
            "POST",
            f"/deployments/{found.json()['id']}/create_flow_run",
            # With a key of its own the call may be repeated, and still starts one run.
            json={"parameters": parameters, "idempotency_key": str(uuid.uuid4())},
            expected=(200, 201, 409, 422),
        )
        if created.status_code in (409, 422):
            raise CycleError(f"Prefect refused the parameters of {deployment}: {created.text[:1000]}")
        run_id: str = created.json()["id"]
        return run_id

    def state(self, flow_run_id: str) -> FlowRunState:
        """The state of a flow run."""
        state = self.flow_run(flow_run_id).get("state")
        if state is None:
            return FlowRunState("PENDING", "Pending", "")
        return FlowRunState(state["type"], state.get("name") or "Pending", state.get("message") or "")

    def flow_run(self, flow_run_id: str) -> FlowRunJson:
        """Everything Prefect tells about a flow run."""
        run: FlowRunJson = self._request("GET", f"/flow_runs/{flow_run_id}").json()
        return run

    def cancel(self, flow_run_id: str) -> None:
        """Ask the worker to end a run."""
        self._request(
            "POST",
            f"/flow_runs/{flow_run_id}/set_state",
            json={"state": {"type": "CANCELLING", "name": "Cancelling"}},
            expected=(200, 201),
        )

    def set_state(self, flow_run_id: str, type_: str, name: str, message: str) -> None:
        """Put a run into a state, whatever it was in."""
        self._request(
            "POST",
            f"/flow_runs/{flow_run_id}/set_state",
            json={"state": {"type": type_, "name": name, "message": message}, "force": True},
            expected=(200, 201),
        )

    def flow_runs(self, filters: Mapping[str, object]) -> list[FlowRunJson]:
        """Flow runs that a filter of Prefect's API selects, newest first."""
        runs: list[FlowRunJson] = self._request(
            "POST", "/flow_runs/filter", json={**filters, "sort": "START_TIME_DESC"}
        ).json()
        return runs

    def next_scheduled(self, flow: str = "cycle") -> datetime | None:
        """When the flow's next scheduled run begins; None where no schedule says so."""
        runs = self._request(
            "POST",
            "/flow_runs/filter",
            json={
                "flows": {"name": {"any_": [flow]}},
                "flow_runs": {
                    "state": {"type": {"any_": ["SCHEDULED"]}},
                    "expected_start_time": {"after_": datetime.now(UTC).isoformat()},
                },
                "sort": "EXPECTED_START_TIME_ASC",
                "limit": 1,
            },
        ).json()
        return datetime.fromisoformat(runs[0]["expected_start_time"]) if runs else None

    def artifact(self, key: str) -> str | None:
        """The newest version of an artifact's text; None where there is none."""
        found = self._request("GET", f"/artifacts/{key}/latest", expected=(200, 404))
        return str(found.json()["data"]) if found.status_code == 200 else None

    def add_artifact(self, key: str, markdown: str, description: str) -> None:
        """Add a version of a text that the UI shows under Artifacts."""
        self._request(
            "POST",
            "/artifacts/",
            json={"key": key, "type": "markdown", "data": markdown, "description": description},
            expected=(200, 201),
        )

    def tell(self, event: str, resource: str, subject: str, message: str) -> None:
        """Add an event, which automations may wait for."""
        told = {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": event,
            "resource": {"prefect.resource.id": resource, "prefect.resource.name": subject},
            "payload": {"subject": subject, "message": message},
        }
        self._request("POST", "/events", json=[told], expected=(200, 204))

    def task_runs(self, flow_run_id: str) -> list[TaskRunJson]:
        """Everything Prefect tells about the tasks of a flow run, in the order in which they began."""
        runs: list[TaskRunJson] = self._request(
            "POST",
            "/task_runs/filter",
            json={"flow_runs": {"id": {"any_": [flow_run_id]}}, "sort": "EXPECTED_START_TIME_ASC"},
        ).json()
        return runs

    def logs(self, flow_run_id: str, offset: int = 0) -> Iterator[str]:
        """Log lines of a run, from the given one on."""
        found = self._request(
            "POST",
            "/logs/filter",
            json={
                "logs": {"flow_run_id": {"any_": [flow_run_id]}},
                "offset": offset,
                "sort": "TIMESTAMP_ASC",
            },
        )
        for entry in found.json():
            yield entry["message"]

    def variable(self, name: str) -> Any:
        """The value of a Prefect variable; None where there is none of the name."""
        found = self._request("GET", f"/variables/name/{name}", expected=(200, 404))
        return None if found.status_code == 404 else found.json()["value"]

    def set_variable(self, name: str, value: Any) -> None:
        """Create the variable, or replace its value."""
        body = {"name": name, "value": value}
        if self._request("POST", "/variables/", json=body, expected=(201, 409)).status_code == 409:
            self._request("PATCH", f"/variables/name/{name}", json=body, expected=(204,))

    def server_home(self) -> str | None:
        """`PREFECT_HOME` of the server, a folder of its machine; None where it tells none."""
        home: str | None = self._request("GET", "/admin/settings").json().get("home")
        return home

    def _request(self, method: str, path: str, json: Any = None, expected: tuple[int, ...] = (200,)) -> httpx.Response:
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                response = self._client.request(method, path, json=json)
            except httpx.HTTPError as error:
                raise ServiceUnavailable(
                    f"The Prefect server at {self.url} does not answer ({type(error).__name__}: {error}). "
                    "Start it with `orchestrator up`, or set PREFECT_API_URL."
                ) from None
            if response.status_code != 503 or time.monotonic() > deadline:
                break
            time.sleep(random.uniform(0.1, 0.7))
        if response.status_code not in expected:
            raise ServiceUnavailable(
                f"The Prefect server at {self.url} answered {response.status_code} to {method} {path}: "
                f"{response.text[:500]}"
            )
        return response
