"""Requests drawn from the policy server's OpenAPI document, well-formed and malformed: none is its fault."""

from __future__ import annotations

import pytest

from tests.openapi import try_every_operation
from tests.orchestrator.serving.tiny_policies import ADMIN_TOKEN, Served


def test_no_request_is_a_fault_of_the_server(served: Served, live: str) -> None:
    tried = try_every_operation(served.url, r"^/(v1|health|admin)", {"X-Admin-Token": ADMIN_TOKEN})
    assert {"POST /v1/chat/completions", "POST /admin/load", "GET /health"} <= tried
    assert len(tried) == 7
    assert served.chat().json()["system_fingerprint"] == live


def test_the_bare_address_says_what_answers_there(served: Served) -> None:
    answer = served.client.get("/")
    assert answer.status_code == 200
    told = answer.json()
    assert told["service"].startswith("policy server")
    assert served.client.get(told["state"]).status_code == 200
    known = served.client.get(told["calls"]).json()["paths"]
    assert {told["models"], told["chat"]} <= known.keys()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"model": "policy-live", "messages": "hi"}',
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}], "\\udfff": 1, "stop": "\\ud800"}',
    ],
)
def test_malformed_bodies_are_refused(served: Served, body: bytes) -> None:
    answer = served.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["code"]


def test_an_oversized_body_is_refused(served: Served) -> None:
    assert served.chat(content="x" * 2_000_000).status_code == 413
