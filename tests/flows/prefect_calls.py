"""Calls to an instance's Prefect server as anybody may make them, made again while it says that it is busy."""

from __future__ import annotations

import time

import httpx

from orchestrator.instance.up import Instance

BUSY_S = 60.0
"""SQLite takes one writer at a time, and the server answers 503 to those that waited too long."""


def prefect(instance: Instance, method: str, path: str, json: object = None) -> httpx.Response:
    """The answer to a request, e.g. `POST` to `/automations/filter`; a 503 only where the server stays busy."""
    deadline = time.monotonic() + BUSY_S
    while True:
        response = httpx.request(method, instance.prefect_api_url + path, json=json, timeout=30)
        if response.status_code != 503 or time.monotonic() > deadline:
            return response
        time.sleep(0.2)
