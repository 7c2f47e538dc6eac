"""What a fitted detector is published with, as types. No torch.

`models/detectors/fitting.py` measures it; the report of a cycle and `orchestrator ood` read it with
`models/runtime/results.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from models.chat.refusals import RefusedRecords
from models.runtime.results import IF_MEASURED

LayerChosenBy = Literal["setting", "validation", "rule"]


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """How many of `n` prompts lie beyond the threshold, and their share with its 95 % interval."""

    n: int
    beyond: int
    share: float
    ci: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class OtherPrompts(Beyond):
    """The same of prompts of the other kind, and how well the detector, or their length alone, tells them from home."""

    auroc: float
    length_auroc: float


@dataclass(frozen=True, kw_only=True)
class Examples:
    """How well each layer that was looked at, or the length alone, tells the examples of harm from home."""

    auroc_by_layer: Mapping[str, float | None]
    """None where one example can't say."""
    length_auroc: float


@dataclass(frozen=True, kw_only=True)
class DetectorResults:
    """What `models/jobs/fit_ood_detector.py` publishes."""

    kind: str
    layer: int
    layer_chosen_by: LayerChosenBy
    threshold: float
    num_fit: int
    num_validation: int
    num_examples: int
    left_out: int
    """Prompts of home that open like an example."""
    refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """Prompts that the chat template refuses."""
    false_alarms: Beyond
    """Of prompts of home that neither fitted the detector nor chose its threshold."""
    examples: Examples | None = field(default=None, metadata=IF_MEASURED)
    others: OtherPrompts | None = field(default=None, metadata=IF_MEASURED)
    shrinkage: float | None = field(default=None, metadata=IF_MEASURED)
    """Of the covariance; the exposure detector has none."""
