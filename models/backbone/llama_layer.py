"""A Llama or Qwen2 layer around its attention, with gradients worked out by hand, for float32 on CPU.

Small models spend a third of a training step on what stands between the matrix products, and each pass over memory
there counts. By hand it is half the passes, and a third less memory than autograd would keep. Equal to the modules'
own forward and backward within rounding (tests/models/backbone/test_trunk.py, test_llama_layer.py,
test_preference_trees.py). Read next: `models/backbone/trunk.py`, `models/preference/tree_states.py`,
`models/backbone/adapters.py`.

Both functions take the RMS norm before their products apart: with h = x · s, s = 1/√(mean x² + ε), and the norm's
weights w, the product is h (W · w)ᵀ. So w meets the matrix and never the tokens:
dW = w · (dyᵀ h), dw = Σ over rows of W · (dyᵀ h), dh = dy (W · w), dx = s · (dh − h · mean(dh · h)).

An adapter c·B·A joins the copies of the weights that are made for this anyway, so that no token meets it on the way
there: with W + c·B·A for W, dA = w · ((c·dy B)ᵀ h) and dB = c·dyᵀ (h (A · w)ᵀ). The two matrices that are not copied,
of the output and of the MLP's last product, are met where they lie, then A and B. While B is zero an adapter adds
zeros to what is computed without it, so that both are equal to the last digit. Frozen weights get no gradient, and
what only that needs is neither computed nor kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.backbone.adapters import linear_parts


def by_hand(layer: Any, states: Tensor) -> bool:
    """Whether the functions here compute what this layer computes on these states (N, D).

    They read weights and adapters and call no module, so that layers that do more, and hooks, go their own way.
    """
    attention, mlp = layer.self_attn, layer.mlp
    modules = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    modules += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return (
        states.device.type == "cpu"
        and states.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not hasattr(attention, "q_norm")
        and type(mlp.act_fn).__name__ in ("SiLUActivation", "SiLU")
        and all((parts := linear_parts(module)) is not None and parts.are_float32 for module in modules)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules())
    )


def complex_angles(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations (N, 1, d/2) and the rotations back, from the cosines and sines (N, d) of a Hugging Face model."""
    half = cos.shape[-1] // 2
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    return torch.complex(cos, sin), torch.complex(cos, -sin)


def queries_keys_values(
    layer: Any, states: Tensor, angles: tuple[Tensor, Tensor], at: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries (M, heads, d) of the tokens `at` (all by default), rotated keys and values (N, kv_heads, d).

    The two coordinates of a plane of rotation stand side by side, other than in the model: products of queries with
    keys don't depend on it.

    Args:
        states: (N, D), before the layer's first norm.
        angles: of all tokens, see `complex_angles`.
    """
    attention, norm = layer.self_attn, layer.input_layernorm
    return _QueriesKeysValues.apply(  # type: ignore[no-untyped-call, no-any-return]
        states,
        norm.weight,
        norm.variance_epsilon,
        *_in_turn(attention.q_proj, attention.k_proj, attention.v_proj),
        attention.head_dim,
        *angles,
        at,
    )


def finish(layer: Any, states: Tensor, attended: Tensor) -> Tensor:
    """What follows attention, (M, D): output projection, residuals, norm, gated product."""
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    return _Finish.apply(  # type: ignore[no-untyped-call, no-any-return]
        states,
        attended,
        norm.weight,
        norm.variance_epsilon,
        *_in_turn(layer.self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )


def _in_turn(*modules: Any) -> tuple[Any, ...]:
    """All weights, all biases, all A, all B, and the scales of the adapters together; None for what is not there."""
    weights, biases, a, b, scales = zip(*map(linear_parts, modules), strict=True)
    return (*weights, *biases, *a, *b, scales)


class _QueriesKeysValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Tensor,
        epsilon: float,
        q_weight: Tensor,
        k_weight: Tensor,
        v_weight: Tensor,
        q_bias: Tensor | None,
        k_bias: Tensor | None,
        v_bias: Tensor | None,
        q_a: Tensor | None,
        k_a: Tensor | None,
        v_a: Tensor | None,
        q_b: Tensor | None,
        k_b: Tensor | None,
        v_b: Tensor | None,
        scales: tuple[float, float, float],
        head_dim: int,
        turn: Tensor,
        turn_back: Tensor,
        at: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, scale = _unit(x, epsilon)
        weights, a, b = (q_weight, k_weight, v_weight), (q_a, k_a, v_a), (q_b, k_b, v_b)
        ctx.save_for_backward(h, scale, norm, turn_back, at, *weights, *a, *b)
        ctx.head_dim, ctx.scales = head_dim, scales
        matrix = _attention_matrix(weights, a, b, scales, head_dim).mul_(norm)
        num_q, num_k = len(q_weight), len(k_weight)
        if at is None:
            product = h @ matrix.t()
            q, kv = product[:, :num_q], product[:, num_q:]
        else:
            q, kv = h[at] @ matrix[:num_q].t(), h @ matrix[num_q:].t()
        if q_bias is not None:
            q += _side_by_side(q_bias[:, None], head_dim)[:, 0]
        if k_bias is not None:
            kv[:, :num_k] += _side_by_side(k_bias[:, None], head_dim)[:, 0]
        if v_bias is not None:
            kv[:, num_k:] += v_bias
        if at is None:
            heads = product.view(len(product), -1, head_dim)
            _complex(heads[:, : (num_q + num_k) // head_dim]).mul_(turn)
            q, k, v = heads.split([num_q // head_dim, num_k // head_dim, len(v_weight) // head_dim], dim=1)
            return q, k, v
        q = q.view(len(q), -1, head_dim)
        k, v = kv.view(len(kv), -1, head_dim).split([num_k // head_dim, len(v_weight) // head_dim], dim=1)
        _complex(q).mul_(turn[at])
        _complex(k).mul_(turn)
        return q, k, v

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        h, scale, norm, turn_back, at, *rest = ctx.saved_tensors
        weights, a, b = rest[:3], rest[3:6], rest[6:]
        x_learns, norm_learns, _, q_learns, k_learns, v_learns, q_bias, k_bias, v_bias, *_ = ctx.needs_input_grad
        num_q, num_k, num_v = map(len, weights)
        # Gradients of the products side by side; of queries too where they were computed for all tokens.
        line = dk.new_empty(len(dk), (num_q if at is None else 0) + num_k + num_v)
        dkv = line[:, -num_k - num_v :]
        dk_part, dv_part = dkv.unflatten(1, (-1, ctx.head_dim)).split([dk.shape[1], dv.shape[1]], dim=1)
        torch.mul(_complex(dk), turn_back, out=_complex(dk_part))
        dv_part.copy_(dv)
        if at is None:
            h_q = h
            dq_part = line[:, :num_q].unflatten(1, (-1, ctx.head_dim))
            torch.mul(_complex(dq), turn_back, out=_complex(dq_part))
            dq = line[:, :num_q]
        else:
            h_q = h[at]
            dq = torch.view_as_real(_complex(dq) * turn_back[at]).flatten(1)
        b_sided = [*(None if x is None else _side_by_side(x, ctx.head_dim) for x in b[:2]), b[2]]
        q_da, q_db = _low_rank_gradients(h_q, norm, (dq,), a[:1], b_sided[:1], ctx.scales[:1])
        kv_da, kv_db = _low_rank_gradients(h, norm, dkv.split([num_k, num_v], 1), a[1:], b_sided[1:], ctx.scales[1:])
        product = None
        if norm_learns or q_learns or k_learns or v_learns:
            product = line.t() @ h if at is None else torch.cat((dq.t() @ h_q, dkv.t() @ h))
        dnorm, dx = None, None
        if norm_learns or x_learns:
            base = _attention_matrix(weights, a, b, ctx.scales, ctx.head_dim)
        if product is not None and norm_learns:
            dnorm = (product * base).sum(0)
        if x_learns:
            matrix = base.mul_(norm)
            if at is None:
                dh = line @ matrix
            else:
                dh = (dkv @ matrix[num_q:]).index_add_(0, at, dq @ matrix[:num_q])
            dx = _before_unit(dh, h, scale)
        dweights: Sequence[Tensor | None] = (None, None, None)
        if product is not None:
            product.mul_(norm)
            dq_and_dk = _apart(product[: num_q + num_k], ctx.head_dim)
            dweights = (*dq_and_dk.split([num_q, num_k]), product[num_q + num_k :])
        return (
            dx,
            dnorm,
            None,
            *dweights,
            _apart(dq.sum(0)[:, None], ctx.head_dim)[:, 0] if q_bias else None,
            _apart(dkv[:, :num_k].sum(0)[:, None], ctx.head_dim)[:, 0] if k_bias else None,
            dkv[:, num_k:].sum(0) if v_bias else None,
            *q_da,
            *kv_da,
            *(None if x is None else _apart(x, ctx.head_dim) for x in (q_db[0], kv_db[0])),
            kv_db[1],
            *[None] * 5,
        )


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        attended: Tensor,
        norm: Tensor,
        epsilon: float,
        out_weight: Tensor,
        gate_weight: Tensor,
        up_weight: Tensor,
        down_weight: Tensor,
        out_bias: Tensor | None,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        out_a: Tensor | None,
        gate_a: Tensor | None,
        up_a: Tensor | None,
        down_a: Tensor | None,
        out_b: Tensor | None,
        gate_b: Tensor | None,
        up_b: Tensor | None,
        down_b: Tensor | None,
        scales: tuple[float, float, float, float],
    ) -> Tensor:
        x = _add_low_rank(torch.addmm(x, attended, out_weight.t()), attended, out_a, out_b, scales[0])
        if out_bias is not None:
            x += out_bias
        h, scale = _unit(x, epsilon)
        weights, a, b = (gate_weight, up_weight), (gate_a, up_a), (gate_b, up_b)
        both = h @ _joined(weights, a, b, scales[1:3]).mul_(norm).t()
        gate, up = both.chunk(2, dim=1)
        if gate_bias is not None:
            gate += gate_bias
        if up_bias is not None:
            up += up_bias
        # Only gradients of the output projection itself need what went into it.
        out_learns = any(ctx.needs_input_grad[i] for i in (4, 12, 16))
        low_rank = (out_a, *a, down_a, out_b, *b, down_b)
        kept = attended if out_learns else None
        ctx.save_for_backward(kept, h, scale, both, norm, out_weight, *weights, down_weight, *low_rank)
        ctx.scales = scales
        product = F.silu(gate).mul_(up)
        x = _add_low_rank(x.addmm_(product, down_weight.t()), product, down_a, down_b, scales[3])
        return x if down_bias is None else x.add_(down_bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        attended, h, scale, both, norm, out_weight, gate_weight, up_weight, down_weight, *low_rank = ctx.saved_tensors
        out_a, gate_a, up_a, down_a, out_b, gate_b, up_b, down_b = low_rank
        _, _, norm_learns, _, out_learns, gate_learns, up_learns, down_learns, *rest = ctx.needs_input_grad
        out_bias, gate_bias, up_bias, down_bias, *_ = rest
        scales = ctx.scales
        base = _joined((gate_weight, up_weight), (gate_a, up_a), (gate_b, up_b), scales[1:3])
        gate, up = both.chunk(2, dim=1)
        opened = F.silu(gate)
        dproduct = _add_low_rank_back(dy @ down_weight, dy, down_a, down_b, scales[3])
        # Rows a power of two apart fall into the same lines of the cache: their product is then an eighth slower.
        dboth = both.new_empty(len(both), both.shape[1] + 16)[:, : both.shape[1]]
        dgate, dup = dboth.chunk(2, dim=1)
        torch.mul(dproduct, opened, out=dup)
        torch.ops.aten.silu_backward.grad_input(dproduct.mul_(up), gate, grad_input=dgate)
        opened.mul_(up)
        ddown_weight = dy.t() @ opened if down_learns else None
        down_da, down_db = _low_rank_gradients(opened, None, (dy,), (down_a,), (down_b,), scales[3:])
        del opened, dproduct
        both_da, both_db = _low_rank_gradients(h, norm, (dgate, dup), (gate_a, up_a), (gate_b, up_b), scales[1:3])
        product = dboth.t() @ h if norm_learns or gate_learns or up_learns else None
        dnorm = (product * base).sum(0) if norm_learns and product is not None else None
        dx = _before_unit(dboth @ base.mul_(norm), h, scale).add_(dy)
        dgate_weight, dup_weight = (None, None) if product is None else product.mul_(norm).split(len(gate_weight))
        dattended = _add_low_rank_back(dx @ out_weight, dx, out_a, out_b, scales[0])
        out_da, out_db = _low_rank_gradients(attended, None, (dx,), (out_a,), (out_b,), scales[:1])
        return (
            dx,
            dattended,
            dnorm,
            None,
            dx.t() @ attended if out_learns else None,
            dgate_weight,
            dup_weight,
            ddown_weight,
            dx.sum(0) if out_bias else None,
            dgate.sum(0) if gate_bias else None,
            dup.sum(0) if up_bias else None,
            dy.sum(0) if down_bias else None,
            *out_da,
            *both_da,
            *down_da,
            *out_db,
            *both_db,
            *down_db,
            None,
        )


def _unit(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x scaled to a mean square of one, (N, D), and by what, (N, 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(epsilon).rsqrt_()
    return x * scale, scale


def _before_unit(dh: Tensor, h: Tensor, scale: Tensor) -> Tensor:
    """The gradient of `_unit`, in the place of `dh`."""
    mean = torch.linalg.vecdot(dh, h)[:, None].mul_(-1 / h.shape[-1])
    return dh.addcmul_(h, mean).mul_(scale)


def _complex(heads: Tensor) -> Tensor:
    """(N, H, d) coordinates, pairs side by side, as (N, H, d/2) complex numbers in the same memory."""
    return torch.view_as_complex(heads.unflatten(-1, (-1, 2)))


def _side_by_side(rows: Tensor, head_dim: int) -> Tensor:
    """(H·d, ·) rows whose planes are the two halves of a head, with the two of each plane side by side; a copy."""
    planes = rows.view(-1, 2, head_dim // 2, rows.shape[-1]).transpose(1, 2)
    return planes.clone(memory_format=torch.contiguous_format).view(rows.shape)


def _apart(rows: Tensor, head_dim: int) -> Tensor:
    """What `_side_by_side` did, undone."""
    return rows.view(-1, head_dim // 2, 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


# Adapters: of each layer A (rank×in) and B (out×rank), None where it has none, and their scales.

_Parts = Sequence[Tensor | None]


def _joined(weights: Sequence[Tensor], a: _Parts, b: _Parts, scales: Sequence[float]) -> Tensor:
    """The rows of all weights, with what their adapters add to them; a copy."""
    return _with_adapters(torch.cat(tuple(weights)), weights, a, b, scales)


def _attention_matrix(
    weights: Sequence[Tensor], a: _Parts, b: _Parts, scales: Sequence[float], head_dim: int
) -> Tensor:
    """Rows for queries, keys and values, adapters included, planes of the first two side by side; a copy."""
    q, k, v = weights
    width = q.shape[1]
    planes = [rows.view(-1, 2, head_dim // 2, width).transpose(1, 2) for rows in (q, k)]
    rows = torch.cat((*planes, v.view(-1, head_dim // 2, 2, width))).reshape(-1, width)
    b = [*(None if x is None else _side_by_side(x, head_dim) for x in b[:2]), b[2]]
    return _with_adapters(rows, weights, a, b, scales)


def _with_adapters(rows: Tensor, weights: Sequence[Tensor], a: _Parts, b: _Parts, scales: Sequence[float]) -> Tensor:
    start = 0
    for weight, each_a, each_b, scale in zip(weights, a, b, scales, strict=True):
        if each_a is not None and each_b is not None:
            rows[start : start + len(weight)].addmm_(each_b, each_a, alpha=scale)
        start += len(weight)
    return rows


def _add_low_rank(y: Tensor, x: Tensor, a: Tensor | None, b: Tensor | None, scale: float) -> Tensor:
    """y + scale · (x·Aᵀ)·Bᵀ in the place of y."""
    return y if a is None or b is None else y.addmm_(x @ a.t(), b.t(), alpha=scale)


def _add_low_rank_back(dx: Tensor, dy: Tensor, a: Tensor | None, b: Tensor | None, scale: float) -> Tensor:
    """dx + scale · (dy·B)·A in the place of dx."""
    return dx if a is None or b is None else dx.addmm_(dy @ b, a, alpha=scale)


def _low_rank_gradients(
    x: Tensor, norm: Tensor | None, dys: Sequence[Tensor], a: _Parts, b: _Parts, scales: Sequence[float]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of every A and every B of layers that read the same rows.

    Args:
        x: (N, in), which they read times `norm` where one is given; not touched where none has an adapter.
        dys: (N, out) each, gradients of what they give.
    """
    das: list[Tensor | None] = [None] * len(dys)
    dbs = list(das)
    adapted = [(i, each_a, each_b) for i, (each_a, each_b) in enumerate(zip(a, b, strict=True)) if each_a is not None]
    if not adapted:
        return das, dbs
    ranks = [len(each_a) for _, each_a, _ in adapted]
    joined = torch.cat([each_a for _, each_a, _ in adapted])
    # One product for all that stands before them, and one for all gradients of A.
    low = x @ (joined if norm is None else joined.mul_(norm)).t()
    dlow = torch.empty_like(low)
    for (i, _, each_b), before, dbefore in zip(adapted, low.split(ranks, 1), dlow.split(ranks, 1), strict=True):
        assert each_b is not None
        torch.mm(dys[i], each_b * scales[i], out=dbefore)
        dbs[i] = (dys[i].t() @ before).mul_(scales[i])
    da = dlow.t() @ x
    for (i, _, _), part in zip(adapted, (da if norm is None else da.mul_(norm)).split(ranks), strict=True):
        das[i] = part
    return das, dbs
