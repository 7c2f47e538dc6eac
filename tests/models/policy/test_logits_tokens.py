"""Logits of some reply tokens at a time: the same numbers and gradients, and never (N, V) in memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone.precision import Precision
from models.memory.live_bytes import LiveBytes
from models.policy.model import Policy, TokenReading
from models.policy.reply_chunks import ReplyChunk, reply_chunks
from tests.models.sampling.tiny_models import cohere, gemma3, granite, llama, qwen2

TOLERANCE = 1e-5
"""Of the largest: sums in another order."""
FAMILIES = {
    "llama": llama,
    "qwen2, tied head": lambda: qwen2(tie_word_embeddings=True),
    "gemma, whose logits are capped": lambda: gemma3(final_logit_softcapping=0.5),
    "cohere, whose logits are multiplied": lambda: cohere(logit_scale=1.5),
    "granite, whose logits are divided": lambda: granite(logits_scaling=3.0),
}
LIMITS = (1, 3, 8)


def chunk_of(tokens: int = 10) -> ReplyChunk:
    replies = [list(range(2, 2 + tokens)), list(range(20, 23))]
    # Another chunk is so dear that there is one.
    layout = {"width": tokens, "pad_id": 0, "chunk_tokens": 2000, "chunk_cost": 2000}
    [chunk] = reply_chunks([[5, 6, 7], [9]], replies, [0, 1], **layout)
    return chunk


def read(model: Any, limit: int | None, *, kl: bool, precision: Precision = "float32") -> tuple[TokenReading, list]:
    """The reading, and the gradients of a sum that weighs every number of it otherwise."""
    policy, chunk = Policy(model, precision, limit), chunk_of()
    other = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(2)
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.zero_grad()
    found = policy.tokens(chunk, Policy(other, precision, limit) if kl else None)
    weights = torch.randn(3, len(chunk.targets), generator=torch.Generator().manual_seed(1))
    total = (weights[0] * found.logps).sum() + (weights[1, :, None] * found.states).sum()
    if found.kl is not None:
        total = total + (weights[2] * found.kl).sum()
    total.backward()
    assert all(parameter.grad is None for parameter in other.parameters())
    return found, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def near(mine: Tensor, its: Tensor, tolerance: float) -> bool:
    return bool((mine - its).abs().max() <= tolerance * its.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", TOLERANCE), ("bfloat16", 2e-2)])
def test_numbers_and_gradients_are_those_of_all_at_once(
    name: str, kl: bool, precision: Precision, tolerance: float
) -> None:
    model = FAMILIES[name]()
    whole, gradients = read(model, None, kl=kl, precision=precision)
    assert (whole.kl is not None) == kl
    for limit in LIMITS:
        found, others = read(model, limit, kl=kl, precision=precision)
        for field in ("states", "logps", "entropies", "kl")[: 4 if kl else 3]:
            assert near(getattr(found, field), getattr(whole, field), tolerance), field
        assert len(others) == len(gradients)
        assert all(near(mine, its, tolerance) for mine, its in zip(others, gradients, strict=True))


@pytest.mark.parametrize("kl", [False, True])
def test_where_a_chunk_is_within_the_limit_nothing_is_different(kl: bool) -> None:
    model = llama()
    whole, gradients = read(model, None, kl=kl)
    found, others = read(model, 13, kl=kl)
    assert len(whole.logps) == 13
    assert torch.equal(found.logps, whole.logps)
    assert all(torch.equal(mine, its) for mine, its in zip(others, gradients, strict=True))


@pytest.mark.parametrize("kl", [False, True])
def test_the_whole_is_never_in_memory(kl: bool) -> None:
    # 160 + 3 tokens of 4,096 words: 2.7 MB in float32, where a layer keeps some hundred kilobytes.
    model = llama(vocab_size=4096, max_position_embeddings=256)
    policy, chunk = Policy(model), chunk_of(tokens=160)
    peaks = {}
    for limit in (None, 4):
        policy.logits_tokens = limit
        model.zero_grad()
        with LiveBytes() as live:
            found = policy.tokens(chunk, policy if kl else None)
            (found.logps.sum() if found.kl is None else found.logps.sum() + found.kl.sum()).backward()
        peaks[limit] = live.peak
    whole = len(chunk.targets) * 4096 * 4
    # Gradients of the table and the head are there either way, and of the head that of a slice, which is added to it.
    gradients = 3 * 4096 * 32 * 4
    assert peaks[4] < gradients + whole / 2
    assert peaks[None] > 2 * whole
