"""The programs that people bring: the official OpenAI client, curl, and Prometheus."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.orchestrator.serving.tiny_policies import HELLO, Served


@pytest.fixture
def client(served: Served, live: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.client.base_url}/v1", api_key="none needed", max_retries=0) as client:
        yield client


def test_the_official_client_gets_a_completion_and_its_snapshot(
    client: openai.OpenAI, served: Served, live: str
) -> None:
    answer = client.chat.completions.create(model="policy-live", messages=HELLO, seed=3, max_tokens=12)
    expected = served.chat(seed=3, max_tokens=12).json()
    assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.model == answer.system_fingerprint == live
    assert answer.usage is not None
    assert answer.usage.completion_tokens == expected["usage"]["completion_tokens"]


def test_the_official_client_streams(client: openai.OpenAI, served: Served, live: str) -> None:
    with client.chat.completions.create(
        model="policy-live", messages=HELLO, seed=4, max_tokens=20, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == served.chat(seed=4, max_tokens=20).json()["choices"][0]["message"]["content"]
    assert {chunk.system_fingerprint for chunk in chunks} == {live}
    assert chunks[-1].usage is not None


def test_the_official_client_lists_models_and_understands_refusals(client: openai.OpenAI, live: str) -> None:
    assert [model.id for model in client.models.list()][:2] == ["policy-live", live]
    with pytest.raises(openai.NotFoundError, match="is unknown; expected policy-live") as unknown:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="this server allows"):
        client.chat.completions.create(model="policy-live", messages=HELLO, max_tokens=10**6)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(served: Served, live: str) -> None:
    body = {"model": "policy-live", "messages": HELLO, "seed": 1, "max_tokens": 8}
    command = ["curl", "-sS", "--fail-with-body", f"{served.client.base_url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, timeout=30).stdout)
    assert answer == served.chat(seed=1, max_tokens=8).json() | {"id": answer["id"], "created": answer["created"]}


def test_prometheus_reads_what_happened(served: Served, live: str) -> None:
    tokens = sum(served.chat(seed=seed, max_tokens=10).json()["usage"]["completion_tokens"] for seed in range(3))
    served.chat(model="nonsense!")
    served.client.get("/no/such/route/of-somebody")
    text = served.client.get("/metrics").text
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    asked = ("policy_server_requests_total", ("method", "POST"), ("route", "/v1/chat/completions"))
    assert found[(*asked, ("status", "200"))] == 3
    assert found[(*asked, ("status", "404"))] == 1
    assert found[("policy_server_requests_total", ("method", "GET"), ("route", "none"), ("status", "404"))] == 1
    assert found[("policy_server_request_seconds_count", ("route", "/v1/chat/completions"))] == 4
    assert found[("policy_server_reply_tokens_total",)] == tokens
    assert found[("policy_server_replies",)] == 0
    assert found[("policy_server_live",)] == found[("policy_server_swaps_total",)] == 1
    # A word and not digits, which the times and the counts on the page may hold by chance.
    assert "of-somebody" not in text
