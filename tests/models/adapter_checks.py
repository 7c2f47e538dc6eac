"""What a training with adapters changed in a published folder, and how exactly it was merged."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

# W·x + B·(A·x) against (W + B·A)·x in float32.
MERGE_TOLERANCE = 2e-5


def changed_layers(folder: Path, initial: Path) -> set[str]:
    """Last parts of the names of the tensors that both have and that differ."""
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, initial))
    both = ours.keys() & theirs.keys()
    return {name.split(".")[-2] for name in both if not torch.equal(ours[name], theirs[name])}
