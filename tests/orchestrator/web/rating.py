"""What a rater's client does, in short."""

from __future__ import annotations

from typing import Any

import httpx


def ok(response: httpx.Response, *expected: int) -> dict[str, Any]:
    """The answer, which must have one of the expected statuses (201 where none is given)."""
    assert response.status_code in (expected or (201,)), response.text
    answer: dict[str, Any] = response.json()
    return answer


def ask(client: httpx.Client, task: str = "helpful", content: str = "hello", **begin: Any) -> tuple[int, int]:
    """Begin a dialogue with one message; gives their ids."""
    dialogue_id = ok(client.post("/api/dialogues", json={"task": task, **begin}))["dialogue_id"]
    message = {"content": content, "client_key": "m1"}
    return dialogue_id, ok(client.post(f"/api/dialogues/{dialogue_id}/messages", json=message))["message_id"]


def pair_of(client: httpx.Client, message_id: int, key: str = "p1", **body: Any) -> dict[str, Any]:
    """Two complete replies to a message."""
    return ok(client.post(f"/api/messages/{message_id}/pairs", json={"client_key": key, **body}), 200, 201)


def code_of(response: httpx.Response) -> tuple[int, str]:
    """Status and error code of a refusal."""
    return response.status_code, response.json()["error"]["code"]
