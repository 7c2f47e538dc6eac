"""Scores of trees of comparisons: a forward pass without padding, for the architectures named here.

All tokens of all trees stand in one line for everything that works token by token; attention looks inside each tree.
The last layer computes queries, output and MLP only where a score is read. The gradients are those of the plain
computation of every sequence by itself (tests/models/preference/test_trees.py, per architecture).
Read next: `models/preference/model.py`, `models/preference/tree_attention.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone.llama_layer import by_hand, complex_angles, finish, queries_keys_values
from models.backbone.precision import filling
from models.backbone.recomputation import through
from models.preference.tree_attention import TreeAttention
from models.preference.trees import Tree


class _Block(Protocol):
    """One decoder layer taken apart at its attention; x is N×D, one row a token."""

    def queries_keys_values(self, layer: Any, x: Tensor, at: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Unrotated heads: M×H×d queries of the tokens `at`, N×K×d keys and values."""

    def finish(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: output projection, residuals, MLP."""


class _LlamaBlock:
    """Llama, Qwen2 (biases), Qwen3 (norms of queries and keys)."""

    def queries_keys_values(self, layer: Any, x: Tensor, at: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.self_attn
        x = _normed(layer.input_layernorm, x)
        q = attention.q_proj(x[at]).unflatten(-1, (-1, attention.head_dim))
        k = attention.k_proj(x).unflatten(-1, (-1, attention.head_dim))
        v = attention.v_proj(x).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, "q_norm"):
            q, k = _normed(attention.q_norm, q), _normed(attention.k_norm, k)
        return q, k, v

    def finish(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.self_attn.o_proj(attended)
        return x + layer.mlp(_normed(layer.post_attention_layernorm, x))


class _GPTNeoXBlock:
    """GPT-NeoX: one projection for queries, keys and values; MLP beside attention or after it."""

    def queries_keys_values(self, layer: Any, x: Tensor, at: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        joint = layer.attention.query_key_value(layer.input_layernorm(x))
        q, k, v = joint.unflatten(-1, (-1, 3 * layer.attention.head_size)).chunk(3, dim=-1)
        return q[at], k, v

    def finish(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        attended = layer.attention.dense(attended)
        if layer.use_parallel_residual:
            return layer.mlp(layer.post_attention_layernorm(x)) + attended + x
        x = x + attended
        return x + layer.mlp(layer.post_attention_layernorm(x))


@dataclass(frozen=True)
class _Architecture:
    block: _Block
    final_norm: str


_LLAMA = _Architecture(_LlamaBlock(), "norm")
ARCHITECTURES = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt_neox": _Architecture(_GPTNeoXBlock(), "final_layer_norm"),
}
_DROPOUTS = ("attention_dropout", "hidden_dropout")


def can_pack(config: Any) -> bool:
    """Whether trees of this model are proven: a known architecture, full causal attention, rotary angles that
    depend on nothing but the position, no dropout (it would draw once for a token that the plain way draws twice)."""
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        config.model_type in ARCHITECTURES
        and set(layers) == {"full_attention"}
        and not getattr(config, "use_sliding_window", False)
        and rotary in ("default", "linear", "llama3", "yarn")
        and not any(getattr(config, name, 0.0) for name in _DROPOUTS)
        and getattr(config, "_attn_implementation", "sdpa") in ("sdpa", "eager")
    )


def states_at_reads(base: Any, trees: Sequence[Tree], device: torch.device) -> Tensor:
    """M×D last hidden states of a trunk where the trees' scores are read, in the order of `Tree.reads`."""
    architecture = ARCHITECTURES[base.config.model_type]
    block = architecture.block
    fill = filling("bfloat16" if torch.is_autocast_enabled(device.type) else "float32", device).tokens
    positions = _filled_up(_line(trees, "positions"), fill).to(device)
    offsets = itertools.accumulate((len(tree) for tree in trees), initial=0)
    read = [offset + read for tree, offset in zip(trees, offsets, strict=False) for read in tree.reads]
    reads = _filled_up(torch.tensor(read), fill).to(device)
    attention = TreeAttention(trees, device)

    x = base.get_input_embeddings()(_filled_up(_line(trees, "ids"), fill).to(device))
    cos, sin = (angles[0] for angles in base.rotary_emb(x, positions[None]))
    if architecture is _LLAMA and all(by_hand(layer, x) for layer in base.layers):
        return _states_by_hand(base, x, complex_angles(cos, sin), attention, reads)[: len(read)]
    cos, sin = cos[:, None], sin[:, None]
    # rotated = x · cos + (x rolled by half) · sin, where the first half of the sines is negative.
    sin = torch.cat((-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]), dim=-1)

    def one(layer: Any, x: Tensor, last: bool) -> Tensor:
        at = reads if last else slice(None)
        q, k, v = block.queries_keys_values(layer, x, at)
        # Angles in the format of the heads: float32 ones would make them float32 again.
        angles = cos.to(q.dtype), sin.to(q.dtype)
        q, k = _rotated(q, *(angle[at] for angle in angles)), _rotated(k, *angles)
        return block.finish(layer, x[at], attention(q, k, v, at_reads=last))

    for number, layer in enumerate(base.layers):
        x = through(layer, one, layer, x, number == len(base.layers) - 1)
    return getattr(base, architecture.final_norm)(x)[: len(read)]


def _states_by_hand(
    base: Any, x: Tensor, turns: tuple[Tensor, Tensor], attention: TreeAttention, reads: Tensor
) -> Tensor:
    """`states_at_reads` from N×D embedded tokens, the gradients of each layer worked out by hand."""

    def one(layer: Any, x: Tensor, last: bool) -> Tensor:
        q, k, v = queries_keys_values(layer, x, turns, reads if last else None)
        return finish(layer, x[reads] if last else x, attention(q, k, v, at_reads=last))

    for number, layer in enumerate(base.layers):
        x = through(layer, one, layer, x, number == len(base.layers) - 1)
    return _normed(base.norm, x)


def _line(trees: Sequence[Tree], name: str) -> Tensor:
    return torch.cat([torch.frombuffer(getattr(tree, name), dtype=torch.int32) for tree in trees]).long()


def _filled_up(line: Tensor, fill: Callable[[int], int]) -> Tensor:
    """The line with zeros behind it, which belong to no tree."""
    return F.pad(line, (0, fill(len(line)) - len(line)))


class _Rotation(torch.autograd.Function):
    """Rotary embedding of N×H×r by N×1×r angles in three passes over memory (the chunked way takes six); its gradient
    is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, signed_sin = ctx.saved_tensors
        rolled = gradient.roll(gradient.shape[-1] // 2, -1)
        return torch.addcmul(gradient * cos, rolled, signed_sin, value=-1), None, None


class _RMSNorm(torch.autograd.Function):
    """Root mean square normalisation with its gradient worked out by hand: half the passes over memory.

    y = w · h, h = x · s, s = 1/√(mean x² + ε); dx = s · (w·g − h · mean(w·g·h)), dw = Σ g·h.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.rsqrt(length * length / x.shape[-1] + epsilon)
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        normed, scale, weight = ctx.saved_tensors
        product = gradient * normed
        weight_gradient = product.flatten(0, -2).sum(0)
        mean = (product @ weight)[..., None] / product.shape[-1]
        return (gradient * weight).addcmul_(normed, mean, value=-1).mul_(scale), weight_gradient, None


def _normed(norm: Any, x: Tensor) -> Tensor:
    return _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call, no-any-return]


def _rotated(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """N×H×d heads rotated by N×1×r angles; the dimensions beyond r (GPT-NeoX) stay as they are."""
    r = cos.shape[-1]
    if r == x.shape[-1]:
        return _Rotation.apply(x, cos, signed_sin)  # type: ignore[no-untyped-call, no-any-return]
    return torch.cat((_Rotation.apply(x[..., :r], cos, signed_sin), x[..., r:]), dim=-1)  # type: ignore[no-untyped-call]
