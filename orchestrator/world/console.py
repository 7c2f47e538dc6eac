"""What the demo says on the terminal: one line per event, with the time since the start and until the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

MIN_LINE_PAUSE_S = 4.0
# More than the estimate: a time that passes before its end is a broken word, one that ends early is none.
MARGIN = 1.4
# How much more is said after a time that turned out too short.
CAUTION = 1.5
# The last of a phase, as a share of what it was expected to take, while it takes longer.
STILL_TO_GO = 0.15
MEASURED = 0.1
"""Share of a phase after which it tells something of the pace."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the demo, and how long it takes on 2 cores with nothing else running."""

    name: str
    expected_s: float


class Console:
    """Progress with an estimate of the end: expected times, scaled by how long the finished phases really took."""

    def __init__(
        self, phases: list[Phase], stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._waiting = list(phases)
        self._stream = stream or sys.stdout
        self._clock = clock
        self._started_s = self._phase_started_s = self._said_s = clock()
        self._phase: Phase | None = None
        self._fraction = 0.0
        self._took_s = self._expected_s = 0.0
        self._paces: list[float] = []
        """How many times longer than expected the finished phases took."""
        self._said_end_s = 0.0
        self._caution = 1.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return self._clock() - self._started_s

    def plan(self, phases: list[Phase]) -> None:
        """What is to come, where it was not known or has to be done again; the phase that was left says no time."""
        self._phase = None
        self._waiting = list(phases)

    def done(self, name: str) -> None:
        """An earlier start did this phase and those before it; nobody waits for them."""
        names = [phase.name for phase in self._waiting]
        if name in names:
            self._waiting = self._waiting[names.index(name) + 1 :]

    def begin(self, name: str, title: str | None = None) -> None:
        """Enter a phase; the phases before it in the plan count as done. `title` is what is said in its place."""
        self._finish()
        names = [phase.name for phase in self._waiting]
        if name in names:
            self._waiting = self._waiting[names.index(name) :]
            self._phase = self._waiting.pop(0)
        self._phase_started_s, self._fraction = self._clock(), 0.0
        self.say(f"── {title or name}")

    def update(self, fraction: float, text: str) -> None:
        """Say how far the phase is, at most every few seconds."""
        self._fraction = fraction
        if self._clock() - self._said_s >= MIN_LINE_PAUSE_S:
            self.say(text)

    def say(self, text: str) -> None:
        """One line."""
        self._said_s = self._clock()
        left = self._time_to_say()
        shown = f"{_clock_time(self.elapsed_s)}  {f'about {_clock_time(left)} left' if left else '':16}  {text}"
        print(shown.rstrip(), file=self._stream, flush=True)

    def end(self) -> None:
        """Leave the last phase."""
        self._finish()
        self._waiting = []

    def seconds_left(self) -> float:
        """Estimate of the time until the end."""
        # As if one more minute had passed exactly as expected: the first phases say little about the machine.
        pace = (self._took_s + 60) / (self._expected_s + 60)
        left = sum(phase.expected_s for phase in self._waiting) * pace
        if self._phase is not None:
            spent = self._clock() - self._phase_started_s
            own = self._phase.expected_s * pace
            left += max(spent * (1 / self._fraction - 1) if self._fraction > 0.2 else own - spent, 0.05 * own)
        return left

    def _time_to_say(self) -> float:
        """A time to the end that should be enough; 0 while nothing is known of the machine's pace."""
        careful = self._careful_seconds_left()
        if careful is None:
            return 0.0
        now_s = self._clock()
        # Where the last word was too little, the next must be enough.
        too_little = 0.0 < self._said_end_s < now_s + careful / MARGIN
        self._caution = self._caution * CAUTION if too_little else 1.0
        left = careful * self._caution
        self._said_end_s = now_s + left
        return left

    def _careful_seconds_left(self) -> float | None:
        """The estimate by the slowest pace that was met, with a margin; None while none was."""
        phase, spent_s = self._phase, self._clock() - self._phase_started_s
        paces = list(self._paces)
        if phase is not None and self._fraction > MEASURED:
            paces.append(spent_s / (self._fraction * phase.expected_s))
        if not paces:
            return None
        pace = max([*paces, 0.5 if phase is None else spent_s / phase.expected_s])
        left_s = sum(one.expected_s for one in self._waiting) * pace
        if phase is not None:
            own_s = phase.expected_s * pace
            rest_s = spent_s * (1 / self._fraction - 1) if self._fraction > MEASURED else own_s - spent_s
            left_s += max(rest_s, STILL_TO_GO * own_s)
        return left_s * MARGIN

    def _finish(self) -> None:
        if self._phase is not None:
            self._took_s += self._clock() - self._phase_started_s
            self._expected_s += self._phase.expected_s
            self._paces.append((self._clock() - self._phase_started_s) / self._phase.expected_s)
            self._phase = None


def _clock_time(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
