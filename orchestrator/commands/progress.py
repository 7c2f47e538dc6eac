"""How far a long command is, in lines on stderr: standard output stays what the command found."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from orchestrator.cycles.time_left import duration

EVERY_S = 10.0
"""Seconds between two lines, and until the first: a short command says nothing."""


class Progress:
    """Says now and then how much of the work is done, and how long the rest takes at the pace so far."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._began_s = self._said_s = clock()

    def __call__(self, share: float) -> None:
        """Take note that so much of the work, 0 to 1, is done."""
        now = self._clock()
        if now - self._said_s < EVERY_S or share <= 0:
            return
        self._said_s = now
        left = (now - self._began_s) / share * (1 - share)
        rest = f"about {duration(left)} left" if share < 1 else "being written to the database"
        print(f"{self._title}: {share:.0%}, {rest}", file=sys.stderr, flush=True)
