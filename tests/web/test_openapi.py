"""Requests drawn from the OpenAPI document, well-formed and malformed: none of them is a fault of the server's."""

from __future__ import annotations

import re

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from rating import ask, ok, pair_of
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

EXAMPLES = 20


def try_every_operation(url: str, paths: str, headers: dict[str, str]) -> set[str]:
    """Send what the document admits and what it does not to every operation; gives the operations tried."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json").include(path_regex=paths)
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        tried.add(operation.label)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: schemathesis.Case) -> None:
                response = case.call(headers=headers, timeout=20)
                # 503 means "in a moment"; what can't be answered for ever is a 4xx.
                case.validate_response(response, checks=[not_a_server_error])
                if response.status_code >= 400:
                    error = response.json()["error"]
                    assert set(error) == {"message", "type", "code"}
                    assert re.fullmatch(r"[a-z_]+", error["code"])

            try:
                send()
            except Unsatisfiable:
                # Nothing about this operation can be wrong: it takes no input.
                assert mode is GenerationMode.NEGATIVE
    return tried


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
