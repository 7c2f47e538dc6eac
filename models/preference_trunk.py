"""Scores of trees of comparisons: a forward pass without padding, for the architectures named here.

All tokens of all trees stand in one line for everything that works token by token; attention looks inside each tree.
The last layer computes queries, output and MLP only where a score is read. The gradients are those of the plain
computation of every sequence by itself (tests/models/test_preference_trees.py, per architecture).
Read next: `models/preference.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.llama_layer import by_hand, complex_angles, finish, queries_keys_values
from models.preference_trees import Span, Tree, visibility


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

# Where an attention call costs less than the padding and hidden tokens that it saves.
CALLS_ARE_CHEAP_ON = ("cpu",)


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
    positions = _line(trees, "positions", device)
    offsets = itertools.accumulate((len(tree) for tree in trees), initial=0)
    reads = torch.tensor([offset + read for tree, offset in zip(trees, offsets, strict=False) for read in tree.reads])
    reads = reads.to(device)
    attention = _TreeAttention(trees, device)

    x = base.get_input_embeddings()(_line(trees, "ids", device))
    cos, sin = (angles[0] for angles in base.rotary_emb(x, positions[None]))
    if architecture is _LLAMA and all(by_hand(layer, x) for layer in base.layers):
        return _states_by_hand(base, x, complex_angles(cos, sin), attention, reads)
    cos, sin = cos[:, None], sin[:, None]
    # rotated = x · cos + (x rolled by half) · sin, where the first half of the sines is negative.
    sin = torch.cat((-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]), dim=-1)
    for number, layer in enumerate(base.layers):
        last = number == len(base.layers) - 1
        at = reads if last else slice(None)
        q, k, v = block.queries_keys_values(layer, x, at)
        # Angles in the format of the heads: float32 ones would make them float32 again.
        angles = cos.to(q.dtype), sin.to(q.dtype)
        q, k = _rotated(q, *(angle[at] for angle in angles)), _rotated(k, *angles)
        attended = attention(q, k, v, at_reads=last)
        x = block.finish(layer, x[at], attended)
    return getattr(base, architecture.final_norm)(x)


def _states_by_hand(
    base: Any, x: Tensor, turns: tuple[Tensor, Tensor], attention: _TreeAttention, reads: Tensor
) -> Tensor:
    """`states_at_reads` from N×D embedded tokens, the gradients of each layer worked out by hand."""
    for number, layer in enumerate(base.layers):
        last = number == len(base.layers) - 1
        q, k, v = queries_keys_values(layer, x, turns, reads if last else None)
        x = finish(layer, x[reads] if last else x, attention(q, k, v, at_reads=last))
    return _normed(base.norm, x)


def _line(trees: Sequence[Tree], name: str, device: torch.device) -> Tensor:
    parts = [torch.frombuffer(getattr(tree, name), dtype=torch.int32) for tree in trees]
    return torch.cat(parts).to(device, torch.long)


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


class _TreeAttention:
    """Attention inside each tree of a line of trees.

    On CPU a few calls a tree, one for each of its spans, so that neither padding nor most of what the mask hides is
    computed. On a GPU, where a call costs more than that, trees are gathered into the rows of one padded call.
    """

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        self.lengths = [len(tree) for tree in trees]
        self.num_reads = [len(tree.reads) for tree in trees]
        ends = [torch.frombuffer(tree.subtree_ends, dtype=torch.int32) for tree in trees]
        self.padded = device.type not in CALLS_ARE_CHEAP_ON
        if self.padded:
            self.rows, self.read_rows = _Rows(self.lengths, device), _Rows(self.num_reads, device)
            width, most = max(self.lengths), max(self.num_reads)
            # Nothing looks at padding, and padding looks at something, so that no softmax is empty.
            ends_by_row = torch.stack([F.pad(row, (0, width - len(row)), value=width) for row in ends])
            reads = torch.tensor([tree.reads + [0] * (most - len(tree.reads)) for tree in trees])
            self.mask = visibility(ends_by_row.to(device))
            self.read_mask = self.mask.gather(1, reads.to(device)[:, :, None].expand(-1, -1, width))
            return
        # Only what is looked at: the mask of a whole tree has far more places than its branches see.
        self.read_masks = [visibility(row, torch.tensor(tree.reads)) for row, tree in zip(ends, trees, strict=True)]
        self.spans = [tree.spans() for tree in trees]
        self.span_masks = [
            [_mask_of(row, span) if span.start else None for span in spans]
            for row, spans in zip(ends, self.spans, strict=True)
        ]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, at_reads: bool) -> Tensor:
        """M×(H·d) attended values from M×H×d queries and N×K×d keys and values; M is N, or with `at_reads` the
        number of scores read."""
        if self.padded:
            rows, mask = (self.read_rows, self.read_mask) if at_reads else (self.rows, self.mask)
            return rows.line(_attend(rows.padded(q), self.rows.padded(k), self.rows.padded(v), mask[:, None]))
        # Heads first, and split rather than sliced: the gradient of n slices is n tensors of the whole size.
        q_trees = q.transpose(0, 1)[None].split(self.num_reads if at_reads else self.lengths, dim=2)
        k_trees, v_trees = (x.transpose(0, 1)[None].split(self.lengths, dim=2) for x in (k, v))
        attended = []
        for tree, heads in enumerate(zip(q_trees, k_trees, v_trees, strict=True)):
            if at_reads:
                attended.append(_attend(*heads, self.read_masks[tree]))
                continue
            spans = self.spans[tree]
            q_spans = heads[0].split([span.end - span.start for span in spans], dim=2)
            k_spans, v_spans = (_SeenBySpans.apply(x, spans) for x in heads[1:])  # type: ignore[no-untyped-call]
            for parts in zip(q_spans, k_spans, v_spans, self.span_masks[tree], strict=True):
                attended.append(_attend(*parts))
        return torch.cat(attended, dim=2)[0].transpose(0, 1).flatten(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """B×H×M×d attended values; without a mask it is causal."""
    if mask is not None:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )


class _SeenBySpans(torch.autograd.Function):
    """What each span of a tree sees of 1×K×T×d keys or values: the first `seen` tokens and its own.

    By hand, since autograd fills a tensor of T tokens with zeros for the gradient of every slice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, spans: Sequence[Span]) -> tuple[Tensor, ...]:
        ctx.spans, ctx.shape = spans, x.shape
        return tuple(
            torch.cat((x[:, :, : span.seen], x[:, :, span.start : span.end]), dim=2)
            if span.seen
            else x[:, :, span.start : span.end].clone()
            for span in spans
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradients[0].new_empty(ctx.shape)
        for span, part in zip(ctx.spans, gradients, strict=True):
            gradient[:, :, span.start : span.end] = part[:, :, span.seen :]
        for span, part in zip(ctx.spans, gradients, strict=True):
            if span.seen:
                gradient[:, :, : span.seen] += part[:, :, : span.seen]
        return gradient, None


def _mask_of(subtree_ends: Tensor, span: Span) -> Tensor:
    own = torch.arange(span.start, span.end)
    return visibility(subtree_ends, own, torch.cat((torch.arange(span.seen), own)))


class _Rows:
    """Lines of tokens as padded rows and back."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        width = max(lengths)
        index = torch.zeros(len(lengths), width, dtype=torch.long)
        start = 0
        for row, length in enumerate(lengths):
            index[row, :length] = torch.arange(start, start + length)
            start += length
        real = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
        self.index, self.places = index.to(device), real.flatten().nonzero()[:, 0].to(device)

    def padded(self, x: Tensor) -> Tensor:
        """B×H×T×d rows of N×H×d tokens; padding repeats the first token, and nothing looks at it."""
        return x[self.index].transpose(1, 2)

    def line(self, x: Tensor) -> Tensor:
        """N×(H·d) tokens of B×H×T×d rows."""
        return x.transpose(1, 2).flatten(0, 1).flatten(1)[self.places]
