"""What a rater's client does and gets, in short."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t


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


def candidates(database: Callable[[], Session], pair_id: int) -> list[t.Candidate]:
    """The pair's candidates, side a first."""
    with database() as session:
        return list(
            session.scalars(select(t.Candidate).where(t.Candidate.pair_id == pair_id).order_by(t.Candidate.side))
        )


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The server-sent events of an answer."""
    return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
