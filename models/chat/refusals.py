"""Records that a chat template refuses: left out one by one and counted, so that none of them ends a job. No torch.

A template may know no system role, or no two turns of one role after each other. Each job that renders records keeps a
`Refusals`, and publishes what it found; the report of a cycle says what can be done.
"""

from __future__ import annotations

from dataclasses import dataclass

SHOWN_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class RefusedRecords:
    """How many records the chat template refused, and why the first of them."""

    count: int
    first: str
    """The roles of its dialogue and the template's own words; no text of anybody's."""


class Refusals:
    """Counts what a template refused."""

    def __init__(self) -> None:
        self.count = 0
        self._first = ""

    def add(self, reason: str) -> None:
        """Count a record, for the reason that a `TemplateRefusal` has."""
        self.count += 1
        self._first = self._first or reason[:SHOWN_CHARACTERS]

    def found(self) -> RefusedRecords | None:
        """What is published; None where nothing was refused."""
        return RefusedRecords(count=self.count, first=self._first) if self.count else None

    def __str__(self) -> str:
        """What an error adds where nothing else is left; empty where nothing was refused."""
        return f"; the chat template refuses {self.count}, the first with {self._first}" if self.count else ""
