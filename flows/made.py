"""What the flows of `training.py` make, as ids of artifacts. Each class also says which stage's artifact is which.

A flow that ran in this process returns one; of a flow that ran elsewhere it is put together from the ledger
(`orchestrator/cycles/turn.py`, `artifacts_of_run`), so that nothing is read back from Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

ByStage = Mapping[str, int]
"""The artifact that each stage ended with, by the stage's name."""


class Made(Protocol):
    """What a flow has made."""

    @classmethod
    def by_stage(cls, artifacts: ByStage) -> Self:
        """From the rows of the flow's stages."""


@dataclass(frozen=True)
class PreferenceModels:
    """The preference model, and its twin where the configuration asks for one."""

    preference_model_id: int
    watcher_id: int | None

    @classmethod
    def by_stage(cls, artifacts: ByStage) -> Self:
        """From the rows of the flow's stages."""
        return cls(artifacts["train_preference_model"], artifacts.get("train_watcher"))


@dataclass(frozen=True)
class WrittenPrompts:
    """People's prompts and those that the initial policy wrote after them."""

    prompt_set_id: int

    @classmethod
    def by_stage(cls, artifacts: ByStage) -> Self:
        """From the rows of the flow's stages."""
        return cls(artifacts["write_prompts"])


@dataclass(frozen=True)
class TrainedPolicy:
    """The result of PPO."""

    snapshot_id: int

    @classmethod
    def by_stage(cls, artifacts: ByStage) -> Self:
        """From the rows of the flow's stages."""
        return cls(artifacts["train_policy"])


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of the flow; `stages.evaluations_of` finds the one of each policy."""

    evaluation_id: int

    @classmethod
    def by_stage(cls, artifacts: ByStage) -> Self:
        """From the rows of the flow's stages."""
        return cls(artifacts["evaluate_policy"])
