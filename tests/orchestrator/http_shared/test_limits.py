"""Rate limits by hand: a bucket for each caller, which fills evenly."""

from __future__ import annotations

import pytest

from orchestrator.http_shared import limits
from orchestrator.http_shared.limits import RateLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_evenly() -> None:
    clock = Clock()
    limit = RateLimit(3, clock)  # one every 20 s
    assert [limit.take("ann") for _ in range(4)] == [None, None, None, 20]
    # Another caller has a bucket of its own, and a refusal costs nothing.
    assert limit.take("ben") is None
    clock.now += 15
    assert limit.take("ann") == 5
    clock.now += 5
    assert [limit.take("ann") for _ in range(2)] == [None, 20]
    clock.now += 3600
    assert [limit.take("ann") for _ in range(4)] == [None, None, None, 20]


def test_a_caller_may_have_another_limit() -> None:
    clock = Clock()
    limit = RateLimit(1, clock)
    assert [limit.take("ann", 2) for _ in range(3)] == [None, None, 30]
    assert [limit.take("ben") for _ in range(2)] == [None, 60]


def test_the_number_of_callers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MAX_CALLERS", 2)
    limit = RateLimit(1, Clock())
    assert [limit.take(name) for name in ("a", "b", "c")] == [None] * 3
    # a was forgotten, c was not.
    assert limit.take("c") == 60
    assert limit.take("a") is None
    with pytest.raises(ValueError, match="above 0"):
        RateLimit(0)
