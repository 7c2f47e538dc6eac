"""Training of a student on a distillation set: shards, gradients, KL on texts it never saw.

`models/jobs/distill_student.py` is the process around it; the maths is in `distillation.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.backbone.batches import chunks_by_length
from models.backbone.output_layer import logits_of
from models.backbone.precision import Precision, computing_in
from models.backbone.trunk import padded_states
from models.initial_policy.distillation import (
    Manifest,
    Shard,
    distillation_kl,
    shard_file,
)
from models.initial_policy.settings import DistillSettings
from models.runtime.random_numbers import derive_seed, permutation

# Tokens of one forward pass; its gradients are summed over the step.
CHUNK_TOKENS = 2048
# Points of the held-out curve, the first and the last included.
CURVE_POINTS = 20


def steps_of(manifest: Manifest, settings: DistillSettings, seed: int) -> list[tuple[int, list[int]]]:
    """(shard, texts of it) of every optimiser step; a function of its arguments alone, which exact resume rests on."""
    plan = []
    for epoch in range(settings.epochs):
        for number in permutation(derive_seed(seed, epoch, 0), len(manifest.shards)).tolist():
            order = permutation(derive_seed(seed, epoch, number + 1), manifest.shards[number]).tolist()
            plan += [
                (number, order[start : start + settings.batch_texts])
                for start in range(0, len(order), settings.batch_texts)
            ]
    return plan


class Shards:
    """The training shards, one of them in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: tuple[int, Shard] | None = None

    def __getitem__(self, number: int) -> Shard:
        if self._held is None or self._held[0] != number:
            self._held = None
            self._held = (number, Shard.load(self._folder / shard_file(number)))
        return self._held[1]


def gradients(
    model: Any, shard: Shard, rows: list[int], device: torch.device, precision: Precision = "float32"
) -> tuple[float, int]:
    """Add the gradients of the mean KL of these texts; (the mean in nats per token, tokens)."""
    model.train()
    total = sum(shard.num_targets(row) for row in rows)
    kl = 0.0
    for chunk in chunks_by_length([shard.length(row) for row in rows], CHUNK_TOKENS):
        with computing_in(precision, device):
            part = summed_kl(model, shard, [rows[index] for index in chunk], device) / total
        part.backward()  # type: ignore[no-untyped-call]
        kl += part.item()
    return kl, total


@torch.no_grad()
def held_out_kl(model: Any, shard: Shard, device: torch.device) -> float:
    """Mean KL of all texts of a shard, nats per token, in evaluation mode."""
    model.eval()
    total = sum(shard.num_targets(row) for row in range(len(shard)))
    chunks = chunks_by_length([shard.length(row) for row in range(len(shard))], CHUNK_TOKENS)
    return sum(summed_kl(model, shard, chunk, device).item() for chunk in chunks) / total


def summed_kl(model: Any, shard: Shard, rows: list[int], device: torch.device) -> torch.Tensor:
    """KL in nats summed over the places of these texts."""
    ids, mask, targets = shard.batch(rows, device)
    # Causal attention never looks right, so real tokens don't see the padding and no attention mask is needed.
    hidden = padded_states(model.base_model, ids, [shard.length(row) for row in rows])
    return distillation_kl(logits_of(model, hidden[mask]), targets).sum()
