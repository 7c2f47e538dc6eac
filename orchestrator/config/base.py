"""What every section of the configuration shares: strictness, paths, and settings that several trainings have."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _expanded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise ValueError("an environment variable that it names is not set")
    return os.path.expanduser(expanded)


PathText = Annotated[str, BeforeValidator(_expanded)]
LoraRank = Annotated[
    int,
    Field(
        ge=0,
        description="Train adapters of this rank on frozen weights (docs/explanation/lora.md); 0 trains all weights",
    ),
]
LoraAlpha = Annotated[float, Field(gt=0, description="An adapter's output is scaled by lora_alpha / lora_rank")]
LoraLayers = Annotated[
    tuple[str, ...], Field(description="Linear layers with an adapter (q_proj, …); none named: attention and MLP, all")
]
Precision = Literal["float32", "bfloat16"]
PRECISION = "bfloat16: faster where the hardware multiplies it, three digits exact; weights stay float32"


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are never coerced in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def checked_lora(section: Any) -> Any:
    """A validator of sections with adapters: layers are named for adapters that there are."""
    if section.lora_layers and not section.lora_rank:
        raise ValueError(f"lora_layers is {list(section.lora_layers)} with lora_rank 0; give a lora_rank, 8 for one")
    return section
