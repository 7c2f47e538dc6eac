"""A Llama or Qwen2 layer around its attention, with gradients worked out by hand, for float32 on CPU.

Small models spend a third of a training step on what stands between the matrix products, and each pass over memory
there counts. By hand it is half the passes, and a third less memory than autograd would keep. Equal to the modules'
own forward and backward within rounding (tests/models/test_trunk.py, test_llama_layer.py, test_preference_trees.py).
Read next: `models/trunk.py`, `models/preference_trunk.py`.

Both functions take the RMS norm before their products apart: with h = x · s, s = 1/√(mean x² + ε), and the norm's
weights w, the product is h (W · w)ᵀ. So w meets the matrix and never the tokens:
dW = w · (dyᵀ h), dw = Σ over rows of W · (dyᵀ h), dh = dy (W · w), dx = s · (dh − h · mean(dh · h)).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def by_hand(layer: Any, states: Tensor) -> bool:
    """Whether the functions here compute what this layer computes on these states (N, D).

    They read weights and call no module, so that layers with adapters or hooks go their own way.
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
        and all(type(module) is nn.Linear and module.weight.dtype == torch.float32 for module in modules)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (layer, attention, mlp, *modules))
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
    query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
    return _QueriesKeysValues.apply(  # type: ignore[no-untyped-call, no-any-return]
        states,
        norm.weight,
        norm.variance_epsilon,
        query.weight,
        key.weight,
        value.weight,
        query.bias,
        key.bias,
        value.bias,
        attention.head_dim,
        *angles,
        at,
    )


def finish(layer: Any, states: Tensor, attended: Tensor) -> Tensor:
    """What follows attention, (M, D): output projection, residuals, norm, gated product."""
    out, norm, mlp = layer.self_attn.o_proj, layer.post_attention_layernorm, layer.mlp
    return _Finish.apply(  # type: ignore[no-untyped-call, no-any-return]
        states,
        attended,
        out.weight,
        out.bias,
        norm.weight,
        norm.variance_epsilon,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
        mlp.gate_proj.bias,
        mlp.up_proj.bias,
        mlp.down_proj.bias,
    )


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
        head_dim: int,
        turn: Tensor,
        turn_back: Tensor,
        at: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, scale = _unit(x, epsilon)
        ctx.save_for_backward(h, scale, norm, q_weight, k_weight, v_weight, turn_back, at)
        ctx.head_dim, ctx.biases = head_dim, (q_bias is not None, k_bias is not None, v_bias is not None)
        q_matrix = _side_by_side(q_weight, head_dim) * norm
        kv_matrix = torch.cat((_side_by_side(k_weight, head_dim), v_weight)).mul_(norm)
        q = (h if at is None else h[at]) @ q_matrix.t()
        kv = h @ kv_matrix.t()
        if q_bias is not None:
            q += _side_by_side(q_bias[:, None], head_dim)[:, 0]
        if k_bias is not None:
            kv[:, : len(k_weight)] += _side_by_side(k_bias[:, None], head_dim)[:, 0]
        if v_bias is not None:
            kv[:, len(k_weight) :] += v_bias
        q = q.view(len(q), -1, head_dim)
        k, v = kv.view(len(kv), -1, head_dim).split([len(k_weight) // head_dim, len(v_weight) // head_dim], dim=1)
        _complex(q).mul_(turn if at is None else turn[at])
        _complex(k).mul_(turn)
        return q, k, v

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        h, scale, norm, q_weight, k_weight, v_weight, turn_back, at = ctx.saved_tensors
        q_base, k_base = (_side_by_side(weight, ctx.head_dim) for weight in (q_weight, k_weight))
        kv_base = torch.cat((k_base, v_weight))
        dq = torch.view_as_real(_complex(dq) * (turn_back if at is None else turn_back[at])).flatten(1)
        dkv = dq.new_empty(len(dk), len(kv_base))
        dk_part, dv_part = dkv.view(len(dk), -1, ctx.head_dim).split([dk.shape[1], dv.shape[1]], dim=1)
        torch.mul(_complex(dk), turn_back, out=_complex(dk_part))
        dv_part.copy_(dv)
        dh = dkv @ (kv_base * norm)
        if at is None:
            dh.addmm_(dq, q_base * norm)
        else:
            dh.index_add_(0, at, dq @ (q_base * norm))
        q_product = dq.t() @ (h if at is None else h[at])
        kv_product = dkv.t() @ h
        dnorm = (q_product * q_base).sum(0) + (kv_product * kv_base).sum(0)
        dk_weight, dv_weight = kv_product.mul_(norm).split([len(k_weight), len(v_weight)])
        has_q, has_k, has_v = ctx.biases
        return (
            _before_unit(dh, h, scale),
            dnorm,
            None,
            _apart(q_product.mul_(norm), ctx.head_dim),
            _apart(dk_weight, ctx.head_dim),
            dv_weight,
            _apart(dq.sum(0)[:, None], ctx.head_dim)[:, 0] if has_q else None,
            _apart(dkv[:, : len(k_weight)].sum(0)[:, None], ctx.head_dim)[:, 0] if has_k else None,
            dkv[:, len(k_weight) :].sum(0) if has_v else None,
            None,
            None,
            None,
            None,
        )


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        attended: Tensor,
        out_weight: Tensor,
        out_bias: Tensor | None,
        norm: Tensor,
        epsilon: float,
        gate_weight: Tensor,
        up_weight: Tensor,
        down_weight: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
    ) -> Tensor:
        x = torch.addmm(x, attended, out_weight.t())
        if out_bias is not None:
            x += out_bias
        h, scale = _unit(x, epsilon)
        both = h @ torch.cat((gate_weight, up_weight)).mul_(norm).t()
        gate, up = both.split(len(gate_weight), dim=1)
        if gate_bias is not None:
            gate += gate_bias
        if up_bias is not None:
            up += up_bias
        ctx.save_for_backward(attended, out_weight, norm, gate_weight, up_weight, down_weight, h, scale, both)
        ctx.biases = tuple(bias is not None for bias in (out_bias, gate_bias, up_bias, down_bias))
        x.addmm_(F.silu(gate).mul_(up), down_weight.t())
        return x if down_bias is None else x.add_(down_bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        attended, out_weight, norm, gate_weight, up_weight, down_weight, h, scale, both = ctx.saved_tensors
        has_out, has_gate, has_up, has_down = ctx.biases
        base = torch.cat((gate_weight, up_weight))
        gate, up = both.split(len(gate_weight), dim=1)
        opened = F.silu(gate)
        dproduct = dy @ down_weight
        dboth = torch.empty_like(both)
        dgate, dup = dboth.split(len(gate_weight), dim=1)
        torch.mul(dproduct, opened, out=dup)
        torch.ops.aten.silu_backward.grad_input(dproduct.mul_(up), gate, grad_input=dgate)
        ddown_weight = dy.t() @ opened.mul_(up)
        dx = _before_unit(dboth @ (base * norm), h, scale).add_(dy)
        product = dboth.t() @ h
        dnorm = (product * base).sum(0)
        dgate_weight, dup_weight = product.mul_(norm).split(len(gate_weight))
        return (
            dx,
            dx @ out_weight,
            dx.t() @ attended,
            dx.sum(0) if has_out else None,
            dnorm,
            None,
            dgate_weight,
            dup_weight,
            ddown_weight,
            dgate.sum(0) if has_gate else None,
            dup.sum(0) if has_up else None,
            dy.sum(0) if has_down else None,
        )


def _unit(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x scaled to a mean square of one, (N, D), and by what, (N, 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return x * scale, scale


def _before_unit(dh: Tensor, h: Tensor, scale: Tensor) -> Tensor:
    """The gradient of `_unit`, in the place of `dh`."""
    mean = torch.linalg.vecdot(dh, h)[:, None].div_(-h.shape[-1])
    return dh.addcmul_(h, mean).mul_(scale)


def _complex(heads: Tensor) -> Tensor:
    """(N, H, d) coordinates, pairs side by side, as (N, H, d/2) complex numbers in the same memory."""
    return torch.view_as_complex(heads.unflatten(-1, (-1, 2)))


def _side_by_side(rows: Tensor, head_dim: int) -> Tensor:
    """(H·d, ·) rows whose planes are the two halves of a head, with the two of each plane side by side; a copy."""
    return rows.view(-1, 2, head_dim // 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def _apart(rows: Tensor, head_dim: int) -> Tensor:
    """What `_side_by_side` did, undone."""
    return rows.view(-1, head_dim // 2, 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)
