"""Two optimiser steps of the preference model, of the code that joins the pure functions, against plain torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.chat.format import ChatFormat
from models.preference.comparison_set import token_pair
from models.preference.model import fresh_preference_model
from models.preference.pairs import TokenPair
from models.preference.settings import PreferenceModelSettings
from models.preference.training import Training
from models.runtime.job import Job
from tests.models.preference_world import polite_comparisons

QUESTIONS = ("harmless", "harmless", "helpful", "helpful", "helpful", "helpful")
RATE, DECAY, HARMLESS = 1e-3, 0.1, 3.0
BATCH = 3
SEED = 0


def training_of(model: Any, chat: ChatFormat, pairs: list[TokenPair], folder: Path, packed: bool) -> Training:
    settings = PreferenceModelSettings(
        batch_pairs=BATCH, learning_rate=RATE, lr_schedule="constant", warmup_fraction=0.0, weight_decay=DECAY,
        harmless_weight=HARMLESS, epochs=1,
    )  # fmt: skip
    training = Training(Job({"seed": SEED}, folder), settings, model, chat, pairs)
    training.packed = packed
    # So few that a batch is several chunks: what a step sums over must not depend on it.
    training.chunk_tokens = 2 * max(max(pair.better_tokens, pair.worse_tokens) for pair in pairs) + 2
    return training


def score(model: Any, prefix: Any, rest: Any) -> Tensor:
    """Of one side alone, by the model's own forward, where its last id stands."""
    hidden = model.base_model(input_ids=torch.tensor([[*prefix, *rest]])).last_hidden_state[0, -1]
    return model.score(hidden)[0]


def the_same_step(model: Any, optimiser: torch.optim.Optimizer, pairs: list[TokenPair]) -> float:
    """The step on a copy: objective L_helpful + 3 L_harmless, the weights' mean over all six pairs being 1."""
    optimiser.zero_grad()
    mean_weight = (4 * 1.0 + 2 * HARMLESS) / 6
    loss = torch.zeros(())
    for pair in pairs:
        gap = score(model, pair.prefix_ids, pair.better_ids) - score(model, pair.prefix_ids, pair.worse_ids)
        weight = (HARMLESS if pair.question == "harmless" else 1.0) / mean_weight
        loss = loss + weight * torch.log1p(torch.exp(-gap)) / len(pairs)
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    optimiser.step()
    return norm


def adam(model: Any) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-8)


@pytest.mark.parametrize("packed", [True, False])
def test_steps_move_every_weight_as_the_same_steps_in_plain_torch(
    packed: bool, policy_dir: Path, tmp_path: Path
) -> None:
    chat = ChatFormat.load(policy_dir)
    records = [record | {"question": question} for record, question in
               zip(polite_comparisons(6, 0), QUESTIONS, strict=True)]  # fmt: skip
    pairs = [token_pair(record, chat) for record in records]
    model = fresh_preference_model(policy_dir, chat, seed=0, device=torch.device("cpu"))
    with torch.no_grad():
        model.score.weight.mul_(8)  # Large gaps, so that gradients are large enough to be clipped.
    other, before = copy.deepcopy(model), [parameter.detach().clone() for parameter in model.parameters()]
    training, optimiser = training_of(model, chat, pairs, tmp_path, packed), adam(other)
    batches = [training._batch(step) for step in range(2)]
    assert sorted(batches[0] + batches[1]) == list(range(6))
    # Weights taken by place in the batch would be others.
    by_place = [pair.question for pair in pairs[:BATCH]]
    assert all([pairs[index].question for index in batch] != by_place for batch in batches)
    norms = []
    for step, batch in enumerate(batches):
        _, _, norm = training._step(step, batch)
        norms.append(norm)
        assert norm == pytest.approx(the_same_step(other, optimiser, [pairs[index] for index in batch]), rel=1e-3)
    assert max(norms) > 1
    assert len(list(training._scored_chunks([pairs[index] for index in batches[0]]))) > 1
    for mine, its, then in zip(model.parameters(), other.parameters(), before, strict=True):
        # Of weights with next to no gradient Adam moves by its sign, which hangs on rounding; they are few.
        assert (mine - its).abs().mean() <= 2e-4 * (its - then).abs().mean()
        assert (its - then).abs().max() > 0
