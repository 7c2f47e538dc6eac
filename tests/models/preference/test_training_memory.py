"""A preference model learns the same, however much is in memory at once: from trees and from plain pairs."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone.output_layer import OutputLayer
from models.backbone.recomputation import recompute_activations
from models.memory.live_bytes import LiveBytes
from models.preference import training as training_module
from models.preference.language_loss import good_sample_loss
from models.preference.settings import PreferenceModelSettings
from models.preference.training import Training
from models.runtime.job import Job
from tests.models.preference.tree_world import BATCH, CPU, PAD, small_model

WHOLE = {True: 512, False: 1024}
"""More than all tokens of a step, which is then one chunk; trees share most of them."""
STEPS = 2
TOLERANCE = 1e-3
"""Of the largest move of a tensor: sums in another order, after two steps of Adam."""


def learned(model: Any, folder: Path, budget: int, *, packed: bool, **changes: Any) -> tuple[list[Tensor], list[int]]:
    """The weights after two steps on the same pairs, and how many pairs each chunk of a step held."""
    settings = PreferenceModelSettings(
        forward_tokens=budget, batch_pairs=len(BATCH), epochs=STEPS, learning_rate=1e-3, lr_schedule="constant",
        **changes,
    )  # fmt: skip
    chat: Any = SimpleNamespace(pad_id=PAD)
    training = Training(Job({}, folder), settings, copy.deepcopy(model), chat, BATCH)
    training.packed = packed
    for step in range(STEPS):
        training._step(step, training._batch(step))
    sizes = [len(members) for members, _, _ in training._scored_chunks(BATCH)]
    return [parameter.detach() for parameter in training.model.parameters()], sizes


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("packed", [True, False])
def test_weights_are_the_same_for_any_budget(packed: bool, name: str, tmp_path: Path) -> None:
    model = small_model(name)
    most = WHOLE[packed]
    whole, sizes = learned(model, tmp_path, most, packed=packed)
    assert sizes == [len(BATCH)]
    for budget, at_least in ((most // 2, 2), (most // 8, 5)):
        weights, sizes = learned(model, tmp_path, budget, packed=packed)
        assert len(sizes) >= at_least
        assert sum(sizes) == len(BATCH)
        for mine, its, then in zip(weights, whole, model.parameters(), strict=True):
            # Of weights with next to no gradient Adam moves by its sign, which hangs on rounding; they are few.
            assert (mine - its).abs().mean() <= TOLERANCE * (its - then).abs().max()


@pytest.mark.parametrize("packed", [True, False])
def test_weights_are_the_same_where_activations_are_computed_again(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("llama")
    kept, _ = learned(model, tmp_path, 1024, packed=packed)
    recomputed, calls = recompute_activations, []
    monkeypatch.setattr(training_module, "recompute_activations", lambda trunk: calls.append(recomputed(trunk)))
    again, _ = learned(model, tmp_path, 1024, packed=packed, recompute_activations=True)
    assert calls
    assert all(torch.equal(mine, its) for mine, its in zip(again, kept, strict=True))


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_language_loss_is_the_same_for_any_number_of_logits_at_once(limit: int) -> None:
    model = small_model("llama")
    layer = OutputLayer(torch.nn.Linear(32, 4096, bias=False), SimpleNamespace(final_logit_softcapping=2.0))
    layer.requires_grad_(False)
    found = []
    for logits_tokens in (None, limit):
        model.zero_grad()
        with LiveBytes() as live:
            loss = good_sample_loss(model, layer, BATCH, PAD, CPU, logits_tokens)
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((loss.item(), gradient, live.peak))
    (loss, gradient, most), (again, other, peak) = found
    assert again == pytest.approx(loss, rel=1e-6)
    assert (gradient - other).abs().max() <= 1e-5 * gradient.abs().max()
    assert peak < 0.7 * most
