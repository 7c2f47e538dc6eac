"""An outside engine in place of the built-in one. The engine is another policy server: it speaks the same shape.

Only where one must be slow, or wrong, it is a stand-in.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from models.sampling.engine import SamplingParams
from orchestrator.serving import keys
from tests.orchestrator.serving.tiny_policies import HELLO, Policies, Serve, Served, code_of, put_live
from tests.running import add_artifact, running

Database = Callable[[], Session]


@pytest.fixture
def engine(serve: Serve, live: str) -> Iterator[Served]:
    """What decodes: it serves the live snapshot under its digest."""
    with serve() as server:
        server.wait_for(lambda health: health["live"] == live)
        yield server


@pytest.fixture
def front(serve: Serve, engine: Served, live: str) -> Iterator[Served]:
    """The policy server before it, which holds no weights."""
    with serve(engines=(f"{engine.url}/v1/",)) as server:
        server.wait_for(lambda health: health["live"] == live)
        yield server


def test_replies_come_from_the_engine_and_name_the_snapshot(
    front: Served, engine: Served, policies: Policies, live: str
) -> None:
    answer = front.chat(seed=7, n=2).json()
    for index, choice in enumerate(answer["choices"]):
        text, tokens = policies.completion(live, HELLO, SamplingParams(12, 1.0, 1.0, 7 + index))
        assert choice["message"]["content"] == text
        assert choice["reply_tokens"] == tokens
    assert (answer["system_fingerprint"], answer["model"]) == (live, live)
    assert front.app.state.server.decoding.tokens == 0
    assert engine.app.state.server.decoding.tokens > 0


def test_streams_grow_and_best_of_is_chosen_here(front: Served, live: str) -> None:
    whole = front.chat(seed=7, n=2).json()
    body = front.chat(seed=7, n=2, stream=True).text
    chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    texts = ["", ""]
    for chunk in chunks:
        assert chunk["system_fingerprint"] == live
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert len(chunks) > 6  # they came in pieces
    client = openai.OpenAI(base_url=f"{front.url}/v1", api_key="unused", max_retries=0)
    said = client.chat.completions.create(
        model="policy-live", messages=[{"role": "user", "content": "hello"}], seed=7, max_tokens=12
    )
    assert said.choices[0].message.content == texts[0]


class SlowEngine:
    """An engine that says one word and then takes for ever; it notices who goes away."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.running = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"data": [{"id": self.model, "max_model_len": 500}]}

        @app.post("/v1/chat/completions")
        async def complete() -> StreamingResponse:
            return StreamingResponse(self._words(), media_type="text/event-stream")

        return app

    async def _words(self) -> AsyncIterator[str]:
        self.running += 1
        try:
            yield 'data: {"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": null}]}\n\n'
            await asyncio.Event().wait()
        finally:
            self.running -= 1


def test_a_client_that_goes_away_frees_the_engine(serve: Serve, live: str) -> None:
    slow = SlowEngine(live)
    with running(slow.app()) as url, serve(engines=(f"{url}/v1",)) as front:
        front.wait_for(lambda health: health["live"] == live)
        assert code_of(front.chat(max_tokens=501)) == (400, "context_length_exceeded")
        body = {"model": "policy-live", "messages": HELLO, "max_tokens": 40, "stream": True, "n": 3}
        with front.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert "data: " in next(lines)
            front.wait_for(lambda health: slow.running == 3)
        front.wait_for(lambda health: slow.running == 0 and health["replies"] == 0)


def test_a_snapshot_that_no_engine_serves_does_not_become_live_and_the_message_says_how(
    serve: Serve, database: Database, policies: Policies, live: str
) -> None:
    with serve(engines=("http://127.0.0.1:1/v1",)) as server:
        health = server.wait_for(lambda health: "No engine serves" in (health["message"] or ""))
        assert health["live"] is None
        assert "http://127.0.0.1:1/v1 does not answer" in health["message"]
        assert f"--served-model-name {live}" in health["message"]
        assert code_of(server.chat()) == (503, "no_policy_live")


def test_an_engine_with_other_weights_is_not_taken_for_the_snapshot(serve: Serve, live: str) -> None:
    with running(SlowEngine("another-model").app()) as url, serve(engines=(f"{url}/v1",)) as front:
        health = front.wait_for(lambda health: "serves another-model" in (health["message"] or ""))
        assert health["live"] is None


def test_a_swap_waits_for_an_engine_that_has_the_new_snapshot(
    serve: Serve, front: Served, engine: Served, database: Database, policies: Policies, live: str
) -> None:
    second = policies.digests[1]
    put_live(database, second)
    # The engine, which is ours, follows the same database: both have it within seconds, the old one serves until then.
    engine.wait_for(lambda health: health["live"] == second)
    front.wait_for(lambda health: health["live"] == second)
    assert front.chat(seed=7).json()["system_fingerprint"] == second


def test_what_an_engine_refuses_fails_the_request_alone(
    serve: Serve, live: str, database: Database, policies: Policies
) -> None:
    with serve(max_context=60) as engine:
        engine.wait_for(lambda health: health["live"] == live)
        with serve(engines=(f"{engine.url}/v1",)) as front:
            front.wait_for(lambda health: health["live"] == live)
            refused = front.chat(max_tokens=200)
            assert code_of(refused) == (400, "context_length_exceeded")
            assert front.chat().status_code == 200
            assert code_of(front.chat(max_tokens=200, stream=True)) == (400, "context_length_exceeded")
            assert front.health()["replies"] == 0


def test_the_engines_key_is_sent_and_not_told(serve: Serve, live: str, database: Database) -> None:
    with database() as session, session.begin():
        key = keys.create_key(session, "front")
        add_artifact(session, "unrelated")
    with serve(require_keys=True) as engine:
        engine.wait_for(lambda health: health["live"] == live)
        with serve(engines=(f"{engine.url}/v1",), engine_key=key) as front:
            front.wait_for(lambda health: health["live"] == live)
            assert front.chat().status_code == 200
            assert key not in repr(front.app.state.server.config)
        with serve(engines=(f"{engine.url}/v1",)) as front:
            health = front.wait_for(lambda health: "does not answer" in (health["message"] or ""))
            assert "401" in health["message"]
