"""Who is told of runs that fail or wait: real events on a real Prefect server, told to a receiver on this machine."""

from __future__ import annotations

import functools
import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, StateType
from prefect.states import Running
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import tables as t
from db.session import transaction
from flows.cycle import cycle
from flows.notifying import AUTOMATION, wanted
from flows.training import train_policy
from orchestrator.cycles.telling import publish_at
from orchestrator.errors import ConfigError
from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.instance.up import Instance
from tests.db.rows import add_artifact
from tests.flows.prefect_calls import prefect
from tests.flows.tiny_cycle import run_command

TOLD_WITHIN_S = 60


class Receiver:
    """What Apprise's json:// posts to."""

    def __init__(self) -> None:
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"json://127.0.0.1:{self.server.server_address[1]}/told"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


def end_a_run(instance: Instance, flow: Flow[..., Any], name: str, kind: StateType, message: str) -> str:
    """A run of a flow that ends in a state of this name."""
    # Prefect's own client, which asks again where the server is busy.
    with SyncPrefectClient(instance.prefect_api_url) as client:
        run = client.create_flow_run(flow, name=f"{flow.name} 7")
        for state in (Running(), State(type=kind, name=name, message=message)):
            client.set_flow_run_state(run.id, state, force=True)
    return str(run.id)


def put_live_by_hand(engine: Engine) -> None:
    """The rows of it: what else belongs to it is tested elsewhere."""
    with Session(engine) as session, session.begin():
        decision = t.Decision(
            snapshot_id=add_artifact(session).id,
            decision="promote",
            kind="by_hand",
            reasons=[],
            evidence={},
            decided_by="Ada",
            identity="claimed",
            via="prefect",
            note="It answers better.",
        )
        session.add(decision)
        session.flush()
        session.add(t.Deployment(snapshot_id=decision.snapshot_id, decision_id=decision.id))


def automations(instance: Instance) -> list[str]:
    found = prefect(instance, "POST", "/automations/filter", json={}).json()
    return [each["name"] for each in found]


@pytest.mark.slow
def test_people_are_told_what_waits_and_of_nothing_else(instance: Instance, receiver: Receiver, engine: Engine) -> None:
    printed = run_command(instance.home, "register", ORCHESTRATOR_NOTIFY=receiver.url)
    try:
        assert "1 address is told" in printed
        # Neither a cycle that went well nor a part of one that failed.
        end_a_run(instance, cycle, "Promoted", StateType.COMPLETED, "A new policy answers raters.")
        end_a_run(instance, train_policy, "Failed", StateType.FAILED, "out of memory")
        run = end_a_run(instance, cycle, "Waiting for approval", StateType.COMPLETED, "Cycle 7 waits for you.")
        told = receiver.told.get(timeout=TOLD_WITHIN_S)
        assert told["title"] == "cycle 7: Waiting for approval"
        link = f"{instance.prefect_api_url.removesuffix('/api')}/runs/flow-run/{run}"
        assert told["message"] == f"Cycle 7 waits for you.\n{link}"
        end_a_run(instance, cycle, "Skipped: 3 of 40", StateType.COMPLETED, "3 fresh comparisons")
        assert receiver.told.get(timeout=TOLD_WITHIN_S)["title"] == "cycle 7: Skipped: 3 of 40"
        assert receiver.told.empty()
        # What a person puts live is told once, whether by command, desk or form.
        api, of_its_own = PrefectApi(instance.prefect_api_url), functools.partial(transaction, engine)
        publish_at(api, of_its_own)
        put_live_by_hand(engine)
        for _ in range(2):
            publish_at(api, of_its_own)
        told = receiver.told.get(timeout=TOLD_WITHIN_S)
        assert told["title"] == "The live policy was put live by hand"
        assert told["message"].endswith("by Ada (as typed into a form). put live by hand: It answers better.")
        # The next that comes is another one.
        end_a_run(instance, cycle, "Skipped: 4 of 40", StateType.CANCELLED, "4 fresh comparisons")
        assert receiver.told.get(timeout=TOLD_WITHIN_S)["title"] == "cycle 7: Skipped: 4 of 40"
        # Nothing said is nothing changed; nobody is nobody.
        run_command(instance.home, "register")
        assert AUTOMATION in automations(instance)
    finally:
        run_command(instance.home, "register", ORCHESTRATOR_NOTIFY="nobody")
    assert AUTOMATION not in automations(instance)


def test_an_address_that_is_none_is_refused_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_NOTIFY", "json://127.0.0.1/x gopher://ada:secret@host")
    with pytest.raises(ConfigError, match=r"Address 2 of ORCHESTRATOR_NOTIFY .*scheme: gopher") as refused:
        wanted()
    assert "secret" not in str(refused.value)
    monkeypatch.delenv("ORCHESTRATOR_NOTIFY")
    assert wanted() is None
