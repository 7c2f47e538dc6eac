"""Requests drawn from an OpenAPI document, for the tests of both services."""

from __future__ import annotations

import re

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
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
                    assert set(error) == {"message", "type", "param", "code"}
                    assert re.fullmatch(r"[a-z_]+", error["code"])

            try:
                send()
            except Unsatisfiable:
                # Nothing about this operation can be wrong: it takes no input.
                assert mode is GenerationMode.NEGATIVE
    return tried
