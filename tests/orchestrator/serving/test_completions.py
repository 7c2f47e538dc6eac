"""Chat completions over HTTP: the same replies as the decode engine alone, in the OpenAI shape."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import torch
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session

from models.sampling.engine import SamplingParams
from orchestrator.serving.app import create_app
from orchestrator.serving.server import PolicyServerConfig
from orchestrator.serving.snapshots import SnapshotLimits
from tests.orchestrator.serving.tiny_policies import CONTEXT, HELLO, Policies, Serve, Served, code_of
from tests.paths import PROJECT_ROOT
from tests.running import add_artifact

Database = Callable[[], Session]


def stream_of(served: Served, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed completion, which must end with [DONE]."""
    body = {"model": "policy-live", "messages": HELLO, "stream": True, **fields}
    with served.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_replies_are_those_of_the_decode_engine(served: Served, policies: Policies, live: str) -> None:
    answer = served.chat(seed=11, n=3, max_tokens=30, temperature=0.9, top_p=0.95).json()
    expected = [policies.completion(live, HELLO, SamplingParams(30, 0.9, 0.95, seed)) for seed in (11, 12, 13)]
    assert [choice["message"]["content"] for choice in answer["choices"]] == [text for text, _ in expected]
    assert [choice["reply_tokens"] for choice in answer["choices"]] == [tokens for _, tokens in expected]
    assert answer["model"] == answer["system_fingerprint"] == live
    assert answer["usage"]["completion_tokens"] == sum(tokens for _, tokens in expected)
    assert len({text for text, _ in expected}) == 3


def test_a_streamed_reply_is_the_same_reply_in_pieces(served: Served, live: str) -> None:
    whole = served.chat(seed=5, n=2, max_tokens=60).json()
    chunks = stream_of(served, seed=5, n=2, max_tokens=60, stream_options={"include_usage": True})
    for index, choice in enumerate(whole["choices"]):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        assert mine[-1]["reply_tokens"] == choice["reply_tokens"]
        assert len(mine) > 5
    assert {chunk["system_fingerprint"] for chunk in chunks} == {live}
    assert chunks[-1]["usage"] == whole["usage"]


def test_a_snapshot_is_named_by_alias_digest_or_its_beginning(
    served: Served, policies: Policies, database: Database, live: str
) -> None:
    other = policies.digests[1]
    with database() as session, session.begin():
        for number in "12":
            add_artifact(session, f"twin {number}", digest="sha256:" + "abcdef" + number * 58)
        add_artifact(session, "no policy", kind="preference_model", digest="sha256:" + "fedcba" + "0" * 58)
    for name in ("policy-live", live, live[:15], live.removeprefix("sha256:")[:8]):
        assert served.chat(name).json()["system_fingerprint"] == live
    # Not deployed and not paired: loaded because the request names it.
    assert served.chat(other[:20]).json()["system_fingerprint"] == other
    assert {model["id"] for model in served.client.get("/v1/models").json()["data"]} == {"policy-live", live, other}
    assert code_of(served.chat("sha256:abcdef")) == (400, "ambiguous_model")
    assert code_of(served.chat("sha256:fedcba")) == (404, "model_not_found")
    assert code_of(served.chat("sha256:000000")) == (404, "model_not_found")
    assert code_of(served.chat("gpt-4")) == (404, "model_not_found")
    assert code_of(served.chat("sha256:abcdef1" + "1" * 57)) == (503, "snapshot_unusable")


def test_concurrent_requests_share_a_batch(served: Served, policies: Policies, live: str) -> None:
    engine = served.app.state.server.snapshots.live.engine
    sizes = []
    step = engine.step

    def counted() -> Any:
        sizes.append(engine.active)
        return step()

    engine.step = counted
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: served.chat(seed=seed, max_tokens=100).json(), range(16)))
    # One at a time would take as many steps as there are tokens.
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert sum(sizes) == tokens
    assert len(sizes) < tokens / 3
    for seed in (0, 15):
        text, _ = policies.completion(live, HELLO, SamplingParams(100, seed=seed))
        assert answers[seed]["choices"][0]["message"]["content"] == text


def test_a_client_that_goes_away_frees_its_slot(serve: Serve, live: str) -> None:
    with serve(max_slots=1) as served:
        served.wait_for(lambda health: health["live"] == live)
        body = {"model": live, "messages": HELLO, "max_tokens": CONTEXT - 40, "seed": 3}
        engine = served.app.state.server.snapshots.live.engine
        steps = 0
        step = engine.step

        def slow() -> Any:
            nonlocal steps
            steps += 1
            time.sleep(0.005)
            return step()

        engine.step = slow
        with served.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            next(response.iter_lines())
        impatient = httpx.Client(base_url=served.url, timeout=0.05)
        with impatient, contextlib.suppress(httpx.TimeoutException):
            impatient.post("/v1/chat/completions", json={**body, "n": 16})
        served.wait_for(lambda health: health["replies"] == 0)
        assert served.chat(max_tokens=1).status_code == 200
        assert engine.active == 0
    # Random weights end a reply after 300 tokens or so: 17 replies one after the other would be thousands of steps.
    assert steps < 1000


def test_limits_are_refused_in_words(serve: Serve, live: str) -> None:
    with serve(max_tokens=100, max_replies=4, max_body_bytes=5000) as served:
        served.wait_for(lambda health: health["live"] == live)
        assert code_of(served.chat(max_tokens=101)) == (400, "max_tokens_too_large")
        assert code_of(served.chat(content="x " * 1200)) == (400, "context_length_exceeded")
        assert code_of(served.chat(content="x " * 3000)) == (413, "body_too_large")
        assert code_of(served.chat(n=5)) == (503, "overloaded")
        for fields in (
            {"stop": ["."]},
            {"tools": [{}]},
            {"temperature": -1},
            {"top_p": 0},
            {"n": 0},
            {"seed": 2**63},
            {"messages": []},
            {"messages": [{"role": "robot", "content": "x"}]},
        ):
            assert code_of(served.chat(**fields)) == (422, "invalid_request"), fields
        assert served.client.post("/v1/chat/completions", content=b"{").status_code == 422
        # What does not change the reply may be there.
        assert served.chat(user="me", stop=None, presence_penalty=0).status_code == 200


def test_what_a_user_types_is_never_a_control_token(served: Served) -> None:
    plain = served.chat(content="</s>", seed=1, max_tokens=1).json()["usage"]["prompt_tokens"]
    empty = served.chat(content="", seed=1, max_tokens=1).json()["usage"]["prompt_tokens"]
    # "</s>" as text is four bytes, none of which merge in this tokenizer; as a control token it would be one.
    assert plain - empty == 4


def test_a_failed_step_costs_its_replies_and_nothing_else(served: Served) -> None:
    engine = served.app.state.server.snapshots.live.engine
    step = engine.step

    def fails() -> Any:
        engine.step = step
        raise RuntimeError("out of memory")

    engine.step = fails
    assert code_of(served.chat()) == (503, "decoding_failed")
    engine.step = fails
    body = {"model": "policy-live", "messages": HELLO, "stream": True}
    streamed = served.client.post("/v1/chat/completions", json=body)
    assert json.loads(streamed.text.strip().splitlines()[-1][6:])["error"]["code"] == "decoding_failed"
    assert served.chat(seed=4).json() | {"id": 0, "created": 0} == served.chat(seed=4).json() | {"id": 0, "created": 0}


def test_every_route_is_documented(policies: Policies) -> None:
    documented = (PROJECT_ROOT / "docs" / "reference" / "api.md").read_text()
    # Neither database nor store is spoken to before the application starts.
    limits = SnapshotLimits(torch.device("cpu"))
    config = PolicyServerConfig("postgresql://localhost/none", policies.store.url, policies.cache, limits)
    routes = [route for route in create_app(config).routes if isinstance(route, APIRoute)]
    assert len(routes) == 9
    for route in routes:
        assert f"{min(route.methods)} {route.path}" in documented
