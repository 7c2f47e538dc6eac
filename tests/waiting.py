"""Waiting for a condition, and no longer than it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 90.0


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Return as soon as the condition holds; the test fails where it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)
