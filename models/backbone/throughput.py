"""How fast a training step ran: seconds by phase, and the share of the device's peak that its products used.

Times go to metrics.jsonl and run.json, never into results.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from models.backbone.adapters import has_adapter
from models.backbone.precision import Precision

# Dense multiply-add peaks in floating-point operations a second, without sparsity, as the makers' data sheets give
# them: float32 on the ordinary cores, with the tensor cores' tf32 (torch.set_float32_matmul_precision("high")), and
# bfloat16.
# CPUs are left out: their clock, and so their peak, changes with load.
PEAKS = {
    "H200": {"highest": 67e12, "high": 494.7e12, "bfloat16": 989.4e12},
    "H100": {"highest": 67e12, "high": 494.7e12, "bfloat16": 989.4e12},  # the SXM board
    "A100": {"highest": 19.5e12, "high": 156e12, "bfloat16": 312e12},
    "L4": {"highest": 30.3e12, "high": 60e12, "bfloat16": 121e12},
}


class Stopwatch:
    """Seconds spent in named phases since the last lap."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to the phase; on a GPU a phase should end by reading a number, which waits for it."""
        began_s = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began_s

    def lap(self) -> dict[str, float]:
        """Seconds by phase, and start again."""
        seconds, self._seconds = self._seconds, {}
        return seconds


def peak_flops(device: torch.device, computes_in: Precision = "float32") -> float | None:
    """The stated peak of this device in that format, float32 as torch is set to compute it; None where not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peaks for part, peaks in PEAKS.items() if part in name), {})
    if computes_in == "bfloat16":
        return known.get("bfloat16")
    exact = computes_in != "tf32" and torch.get_float32_matmul_precision() == "highest"
    return known.get("highest" if exact else "high")


def product_parameters(model: Any) -> int:
    """Parameters that every token is multiplied with: all matrices, an embedding table only where it is the head too.

    A forward pass costs twice as many floating-point operations per token, a backward pass four times; attention
    over the tokens before comes on top and is not counted, so that MFU is a little too low for long texts.

    Source: Kaplan et al. 2020, arXiv:2001.08361, §2.1; Chowdhery et al. 2022, arXiv:2204.02311, appendix B (MFU).
    """
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    return matrices - (0 if tied else table.weight.numel())


def learning_operations(model: Any) -> int:
    """Floating-point operations for each token that a model learns from, forward and backward.

    Six for each parameter of a product. A frozen one takes four: the gradient goes through it, but not to it.
    """
    parameters = product_parameters(model)
    if not has_adapter(model):
        return 6 * parameters
    return 4 * parameters + 2 * sum(p.numel() for p in model.parameters() if p.requires_grad and p.ndim > 1)
