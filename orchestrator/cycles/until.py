"""Where a run of the cycle ends before the cycle does: after one stage, that of the form `run-stage`."""

from __future__ import annotations

from typing import Any, Literal, get_args

from orchestrator.errors import CyclePaused

Stage = Literal[
    "prepare initial policy", "deploy initial policy", "freeze comparisons", "check data", "train preference model",
    "build prompts", "write prompts", "train policy", "evaluate policies",
]  # fmt: skip
"""What a person may have run by itself, in the order of `flows/cycle.py`: tasks and gpu flows up to the decision.

Not the decision: once it is taken the cycle is ended by whatever comes by (`flows/deciding.py`). Nor what people said
of earlier cycles, which belongs to those.
"""
STAGES: tuple[Stage, ...] = get_args(Stage)


class Until:
    """Lets a runner go as far as one stage, by its name in `STAGES`; None lets it go to the end."""

    def __init__(self, stage: Stage | None = None, *, fresh: bool = False) -> None:
        self._stage = stage
        self._fresh = fresh

    def begin(self, name: str, options: dict[str, Any]) -> None:
        """A stage is about to begin, with these named arguments.

        Raises:
            CyclePaused: it comes after the last one; that one the cycle's configuration does not have.
        """
        asked, begins = self._stage, _words(name)
        if asked is None or begins not in (*STAGES, "decide promotion"):
            return
        if begins == asked:
            if self._fresh and "fresh" in options:
                options["fresh"] = True
        elif begins not in STAGES[: STAGES.index(asked)]:
            raise CyclePaused(f"The cycle's configuration has no stage {asked}; all before it is done.")

    def end(self, name: str) -> None:
        """A stage has ended well.

        Raises:
            CyclePaused: it was the last one.
        """
        if self._stage is not None and _words(name) == self._stage:
            raise CyclePaused(f"{self._stage} is done.")


def _words(name: str) -> str:
    """A task's or a gpu flow's name as a person reads it."""
    return name.replace("_", " ").replace("-", " ")
