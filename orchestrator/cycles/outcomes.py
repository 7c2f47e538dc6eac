"""How a run of the cycle ends: a word of its own for each way, and the type by which Prefect colours it.

Green: a policy went live, or the one stage that was asked for is done. Grey: none did, and nothing is wrong. Red:
somebody has to do something. The words are the names of the run's state (docs/decisions/0012-words-of-states.md);
errors and crashes keep Prefect's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StateTypeName = Literal["COMPLETED", "CANCELLED", "FAILED", "PAUSED"]
WAITING = "Waiting for approval"
TYPES: dict[str, StateTypeName] = {
    "Week 0": "COMPLETED",
    "Stage done": "COMPLETED",
    "Promoted": "COMPLETED",
    "Refused": "CANCELLED",
    "Skipped": "CANCELLED",
    "Cancelled": "CANCELLED",
    "Not started": "CANCELLED",
    # Not ended for Prefect, whose button Resume starts the run again: it goes on, or waits again.
    WAITING: "PAUSED",
    "Blocked": "FAILED",
}
AS_IT_SHOULD = ("Week 0", "Stage done", "Promoted", "Refused", "Skipped", WAITING)
"""Ends at which nobody has to do anything, or somebody was asked to."""


@dataclass(frozen=True)
class Outcome:
    """How a cycle's run ended, in words for the operator; it becomes the state of the flow run."""

    name: str
    """One of `TYPES`, followed by figures where there are some: "Skipped: 30 of 40"."""
    message: str

    @property
    def type(self) -> StateTypeName:
        """Prefect's type of the state."""
        return TYPES[word(self.name)]

    @property
    def as_it_should(self) -> bool:
        """Whether nothing is wrong."""
        return ended_as_it_should(self.type, self.name)


def word(name: str) -> str:
    """The word of a state's name, without its figures."""
    return name.partition(":")[0]


def ended_as_it_should(type_: str, name: str) -> bool:
    """Whether a run with this state ended without an error and without being ended by somebody."""
    return type_ == "COMPLETED" or word(name) in AS_IT_SHOULD
