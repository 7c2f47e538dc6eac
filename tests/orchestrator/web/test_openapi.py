"""Requests drawn from the OpenAPI document, well-formed and malformed: none of them is a fault of the server's."""

from __future__ import annotations

import httpx

from tests.openapi import try_every_operation
from tests.orchestrator.web.rating import ask, ok, pair_of


def test_no_request_is_a_fault_of_the_server(rater: httpx.Client) -> None:
    # A dialogue and a pair, so that small ids lead somewhere.
    _, message_id = ask(rater)
    pair_of(rater, message_id)
    headers = {"Authorization": rater.headers["Authorization"]}
    tried = try_every_operation(str(rater.base_url), r"^/(api|health)", headers)
    assert "POST /api/pairs/{pair_id}/comparison" in tried
    assert len(tried) >= 8


def test_oversized_and_malformed_bodies_are_refused(rater: httpx.Client) -> None:
    dialogue_id = ok(rater.post("/api/dialogues", json={"task": "helpful"}))["dialogue_id"]
    path = f"/api/dialogues/{dialogue_id}/messages"
    big = rater.post(path, content=b'{"content": "' + b"x" * 2_000_000 + b'"}')
    assert (big.status_code, big.json()["error"]["code"]) == (413, "body_too_large")
    for body in (b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"content": 1}', b"{" * 100_000):
        answer = rater.post(path, content=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, (body[:20], answer.text)
        assert answer.json()["error"]["code"]
