"""Causal attention of short texts as plain products over blocks of queries, for float32 on CPU.

PyTorch's fused kernel works in tiles of 32 queries and computes the weights again for the backward; with heads of 32 it
reaches a quarter of the rate of a product. Here a block of queries meets all keys before its end in one batched
product, and its weights are kept: T² / 2 numbers a head, so that long texts are left to the fused kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Texts up to so many tokens: the weights kept are then fewer numbers than the rest of a layer keeps.
MAX_TOKENS = 256
# Queries of a block; half of its last so many columns are masked but computed.
QUERIES = 64


def attends_to_window(config: Any) -> bool:
    """Whether some layer of a model attends to the newest tokens alone, or to anything else but all before."""
    layers = getattr(config, "layer_types", None)
    if layers is None:  # Mistral says it so.
        return getattr(config, "sliding_window", None) is not None
    return set(layers) != {"full_attention"}


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attended values (B, T, H·d) of texts of T tokens, each token with itself and those before it.

    Args:
        query: (B, H, T, d).
        key, value: (B, K, T, d), K a divisor of H.
    """
    plain = query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[1] == key.shape[1]
    if plain and query.shape[2] <= MAX_TOKENS:
        return _CausalAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call, no-any-return]
    attended = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended.transpose(1, 2).flatten(2)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        shape = query.shape
        q, k, v = (x.reshape(-1, *shape[2:]) for x in (query, key, value))
        attended = torch.empty_like(q)
        kept = []
        for start, end in _blocks(shape[2]):
            hidden = torch.full((end - start, end), float("-inf"), device=q.device).triu_(1 + start)
            scores = torch.baddbmm(hidden, q[:, start:end], k[:, :end].transpose(1, 2), alpha=scale)
            weights = torch.softmax(scores, dim=-1)
            torch.bmm(weights, v[:, :end], out=attended[:, start:end])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.shape = scale, shape
        return attended.view(shape).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        texts, heads, tokens, size = ctx.shape
        dout = gradient.view(texts, tokens, heads, size).transpose(1, 2).reshape(q.shape)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, end), weights in zip(_blocks(tokens), kept, strict=True):
            rows = dout[:, start:end]
            dv[:, :end].baddbmm_(weights.transpose(1, 2), rows)
            dweights = torch.bmm(rows, v[:, :end].transpose(1, 2))
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            torch.baddbmm(dq[:, start:end], dscores, k[:, :end], beta=0, alpha=ctx.scale, out=dq[:, start:end])
            dk[:, :end].baddbmm_(dscores.transpose(1, 2), q[:, start:end], alpha=ctx.scale)
        return dq.view(ctx.shape), dk.view(ctx.shape), dv.view(ctx.shape), None


def _blocks(tokens: int) -> Iterator[tuple[int, int]]:
    return itertools.pairwise([*range(0, tokens, QUERIES), tokens])
