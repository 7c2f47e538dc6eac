"""What a report says of the initial policy beside its distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.initial_policy.results import Doubts
from models.runtime.results import result_from_json


def doubts_of(results: Mapping[str, Any]) -> tuple[str, ...]:
    """What its preflight found; nothing of one that was pretrained here, or prepared by an earlier version."""
    return result_from_json(Doubts, results, where="the results of the initial policy").doubts or ()
