"""What a detector of far requests is asked to be. Read next: `fitting.py`, which follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.runtime.settings import Checked, setting

DetectorKind = Literal["mahalanobis", "relative", "exposure"]


@dataclass(frozen=True)
class OodSettings(Checked):
    """What a detector is asked to be."""

    detector: DetectorKind = setting(
        "relative",
        "What far means: the squared Mahalanobis distance less that of independent numbers (`relative`), the plain "
        "distance, or what was learnt from examples (`exposure`).",
    )
    layer: int | None = setting(
        None,
        "Hidden layer that is read, 0 being the embeddings. Without it, the layer that tells the examples best from "
        "home where there are 30 or more of them; else the last of up to six layers, or the middle one of more.",
        unit="layer",
        raised="reads later, more abstract states",
        at_least=0,
    )
    home: Literal["helpful", "harmless"] = setting(
        "helpful",
        "Kind of the prompts that are not far; what the prompt set has of the other kind is used to judge the "
        "detector.",
    )
    quantile: float = setting(
        0.99,
        "Share of home that lies within the threshold, taken from prompts that did not fit the detector.",
        unit="share",
        raised="fewer false alarms, and fewer far requests found",
        above=0,
        at_most=1,
    )
    max_prompts: int = setting(
        4096,
        "Prompts of home that are read, drawn by hash.",
        unit="prompts",
        raised="a steadier detector and threshold, and more time to fit it",
        at_least=8,
    )
    l2: float = setting(
        1e-3,
        "Penalty on the weights of `exposure`.",
        unit="per squared weight",
        raised="it learns the examples less by heart; for few examples",
        above=0,
    )
