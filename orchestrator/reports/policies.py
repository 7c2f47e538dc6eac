"""What a cycle's numbers hold of its policy, read once: rows, pictures and stops take attributes from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.policy.results import Evaluation, PPOResult
from models.runtime.results import result_from_json


@dataclass(frozen=True)
class ListedSnapshot:
    """A snapshot that a run kept on its way, as a report lists it."""

    digest: str
    samples: int
    kl_nats: float
    score: float


def training_of(numbers: Mapping[str, Any]) -> PPOResult | None:
    """The cycle's PPO run; None where it did not come that far."""
    found = numbers.get("training")
    return None if found is None else result_from_json(PPOResult, found, where="the results of PPO")


def evaluation_of(numbers: Mapping[str, Any], name: str = "evaluation") -> Evaluation | None:
    """The evaluation of that name among the numbers: that of the new policy, if none is given."""
    found = numbers.get(name)
    return None if found is None else result_from_json(Evaluation, found, where=f"the numbers of {name}")


def snapshots_in(numbers: Mapping[str, Any]) -> list[ListedSnapshot]:
    """The snapshots on the way, by the samples that PPO had learned from."""
    listed = numbers.get("snapshots") or []
    return [result_from_json(ListedSnapshot, kept, where="the snapshots of the cycle") for kept in listed]
