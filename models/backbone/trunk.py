"""Final hidden states of a decoder at chosen positions, without the work that no chosen position needs.

What lies behind the last layer's attention is computed at those positions alone: a tenth of a forward and backward
where half of the tokens are prompt. Policy, reference and critic read their states here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone.causal_attention import attends_to_window, causal_attention
from models.backbone.llama_layer import by_hand, complex_angles, finish, queries_keys_values
from models.backbone.recomputation import through
from models.backbone.rotary import FIXED_ROTARY, depends_on_length, rotated

_FAMILIES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")


def states_at(trunk: Any, ids: Tensor, positions: Tensor, *, hand: bool = True) -> Tensor:
    """Final states (N, D), after the last norm.

    Args:
        trunk: a Hugging Face decoder without its head (`model.base_model`).
        ids: (B, T), right-padded; a causal model never sees padding from an earlier position.
        positions: (N,) flat indices into (B, T).
        hand: False keeps away from `models/backbone/llama_layer.py`, whose last digits differ from those of the
        modules.
    """
    if not computes_itself(trunk):
        # Asking where each row ends waits for a GPU.
        lengths = _needed(positions, *ids.shape) if depends_on_length(trunk.config) else []
        hidden = padded_states(trunk, ids, lengths)
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
    hidden = trunk.embed_tokens(ids)
    cos, sin = trunk.rotary_emb(hidden, torch.arange(ids.shape[1], device=ids.device)[None])
    layers = trunk.layers[: trunk.config.num_hidden_layers]
    if hand and all(by_hand(layer, hidden) for layer in layers):
        return _states_by_hand(trunk, layers, hidden, (cos[0], sin[0]), positions)
    angles = cos[:, None], sin[:, None]
    for number, layer in enumerate(layers):
        at = positions if number == len(layers) - 1 else None
        hidden = through(layer, _by_modules, layer, hidden, angles, at)
    return _norm(trunk.norm, hidden)


def _by_modules(layer: Any, hidden: Tensor, angles: tuple[Tensor, Tensor], positions: Tensor | None) -> Tensor:
    """One layer's states (B, T, D), or with `positions` (N, D) of those alone."""
    attention = layer.self_attn
    normed = _norm(layer.input_layernorm, hidden)
    query, key, value = (
        projection(normed).unflatten(-1, (-1, attention.head_dim))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    # Angles in the format of the heads: float32 ones would make them float32 again.
    cos, sin = (angle.to(query.dtype) for angle in angles)
    query, key = rotated(query, cos, sin), rotated(key, cos, sin)
    attended = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=attention.scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    attended = attended.transpose(1, 2).flatten(2)
    if positions is not None:
        attended, hidden = (x.flatten(0, 1).index_select(0, positions) for x in (attended, hidden))
    hidden = hidden + attention.o_proj(attended)
    mlp, normed = layer.mlp, _norm(layer.post_attention_layernorm, hidden)
    return hidden + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def padded_states(trunk: Any, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """Final states (B, T, D) of right-padded rows (B, T) by the model's own forward; of padding they mean nothing.

    Each row's are those that it has by itself: models whose angles follow the longest row take the rows one by one.
    """
    if not depends_on_length(trunk.config):
        states: Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state
        return states
    rows = [trunk(input_ids=row[None, :length], use_cache=False).last_hidden_state[0]
            for row, length in zip(ids, lengths, strict=True)]  # fmt: skip
    return torch.stack([F.pad(row, (0, 0, 0, ids.shape[1] - len(row))) for row in rows])


def _needed(positions: Tensor, count: int, width: int) -> list[int]:
    """Up to where each row is looked at, given flat indices into (count, width)."""
    lengths = [1] * count
    for position in positions.tolist():
        row, column = divmod(position, width)
        lengths[row] = max(lengths[row], column + 1)
    return lengths


def _states_by_hand(
    trunk: Any, layers: Sequence[Any], hidden: Tensor, angles: tuple[Tensor, Tensor], positions: Tensor
) -> Tensor:
    """`states_at` from embedded tokens (B, T, D), the gradients of each layer worked out by hand."""
    count, width, _ = hidden.shape
    hidden = hidden.flatten(0, 1)
    turns = complex_angles(*(angle.repeat(count, 1) for angle in angles))
    for number, layer in enumerate(layers):
        at = positions if number == len(layers) - 1 else None
        hidden = through(layer, _one_by_hand, layer, hidden, (count, width), turns, at)
    return _norm(trunk.norm, hidden)


def _one_by_hand(
    layer: Any, hidden: Tensor, shape: tuple[int, int], turns: tuple[Tensor, Tensor], positions: Tensor | None
) -> Tensor:
    """One layer's states (B·T, D), or with `positions` (N, D) of those alone."""
    query, key, value = (
        states.view(*shape, -1, states.shape[-1]).transpose(1, 2)
        for states in queries_keys_values(layer, hidden, turns)
    )
    attended = causal_attention(query, key, value, layer.self_attn.scaling).flatten(0, 1)
    if positions is not None:
        attended, hidden = (x.index_select(0, positions) for x in (attended, hidden))
    return finish(layer, hidden, attended)


def goes_by_hand(trunk: Any) -> bool:
    """Whether `states_at` would work out the gradients of these layers by hand in float32."""
    return computes_itself(trunk) and all(by_hand(layer, trunk.embed_tokens.weight) for layer in trunk.layers)


def computes_itself(trunk: Any) -> bool:
    """Whether `states_at` knows this architecture and setting; others run their own forward.

    So does a trunk with hooks, which somebody wants to be called (sharding, for one).
    """
    config = trunk.config
    return (
        not (trunk._forward_pre_hooks or trunk._forward_hooks)
        and type(trunk).__name__ in _FAMILIES
        and not attends_to_window(config)
        and (config.rope_parameters or {}).get("rope_type", "default") in FIXED_ROTARY
        and config.hidden_act == "silu"
        and config._attn_implementation == "sdpa"
        and not (trunk.training and (config.attention_dropout or trunk.gradient_checkpointing))
    )


def _norm(module: nn.Module, states: Tensor) -> Tensor:
    weight: Any = module.weight
    return F.rms_norm(states, weight.shape, weight, module.variance_epsilon)  # type: ignore[arg-type]
