"""Rate limits: so many requests a minute for each caller, with bursts of the same size. In memory, per process."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

_MAX_CALLERS = 10_000
"""Callers that are remembered; whoever has not come for longest is forgotten first, and begins with a full bucket."""


class RateLimit:
    """A bucket of `per_minute` requests for each caller, which fills evenly."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not per_minute > 0:
            raise ValueError(f"per_minute is {per_minute}; expected a number above 0")
        self.per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """What is left, and when that was so; the caller that came last at the end."""
        self._lock = threading.Lock()

    def take(self, caller: Hashable, per_minute: float | None = None) -> int | None:
        """Count a request: None where it may go ahead, else the seconds to wait, which is not counted."""
        rate = self.per_minute if per_minute is None else per_minute
        with self._lock:
            now = self._clock()
            left, since = self._buckets.get(caller, (rate, now))
            left = min(rate, left + (now - since) * rate / 60)
            wait_s = None if left >= 1 else math.ceil((1 - left) * 60 / rate)
            self._buckets[caller] = (left - 1 if wait_s is None else left, now)
            self._buckets.move_to_end(caller)
            if len(self._buckets) > _MAX_CALLERS:
                self._buckets.popitem(last=False)
            return wait_s
