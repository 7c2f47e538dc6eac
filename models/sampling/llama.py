"""Decoding for the Llama, Mistral, Qwen2 and Qwen3 families with weights read straight from the Hugging Face model.

One forward without module calls, masks only where needed, over the cache of keys and values in
`key_value_cache.py`, whose rows are requests; `tests/models/sampling/test_engine.py` holds it against the plain
Hugging Face forward.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone.adapters import low_rank
from models.backbone.causal_attention import attends_to_window
from models.backbone.rotary import FIXED_ROTARY, rotated
from models.sampling.in_place import place, refreshed, tensors
from models.sampling.key_value_cache import KeyValueCache, Views

# Below this size the cost of a step is launching operations, so projections that share an
# input are joined into one copy; above it the copy's memory would matter more.
JOIN_BELOW_PARAMETERS = 50_000_000

# Tokens of prompts in one forward pass on CPU: the states of more leave the cache.
_PREFILL_TOKENS_CPU = 1024


class _Projection(NamedTuple):
    """A linear layer: W·x + bias, and + B·(A·x) of an adapter that is not merged."""

    weight: Tensor
    bias: Tensor | None
    low_rank: tuple[Tensor, Tensor] | None = None


class _Layer(NamedTuple):
    """What a layer multiplies with, in its order; None for a norm that is part of the product after it."""

    norm_1: Tensor | None
    qkv: list[_Projection]
    head_norms: Tensor | None
    """Of queries and keys before they are rotated (heads + kv_heads, head_dim); None for families without."""
    out: _Projection
    norm_2: Tensor | None
    gate_up: list[_Projection]
    down: _Projection


_FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def supports(model: Any) -> bool:
    """Whether this decoder computes what the model computes; others take the generic path."""
    config = getattr(model, "config", None)
    if type(model).__name__ not in _FAMILIES or config is None or attends_to_window(config):
        return False
    rotary = (config.rope_parameters or {}).get("rope_type", "default")
    return rotary in FIXED_ROTARY and config.hidden_act == "silu"


class LlamaDecoder:
    """The forward; rows 0 .. n-1 of the cache are the running requests, in the engine's order."""

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        """Decode in this format, by default the weights' own; another one costs a copy of them."""
        self.model = model
        self.device: torch.device = model.device
        self.dtype: torch.dtype = dtype or model.dtype
        config = model.config
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.eps = config.rms_norm_eps
        self.vocabulary = model.lm_head.weight.shape[0]
        self.cache = KeyValueCache(config.num_hidden_layers, self.kv_heads, self.head_dim, self.dtype, self.device)
        # On the CPU, where reading them does not wait for a GPU.
        self.lengths = torch.zeros(0, dtype=torch.long)
        self._angles: list[Tensor] = []  # of every position: (positions, 1, head_dim) cosines and sines, or one complex
        self._layers: list[_Layer] = []
        self._outer: tuple[Tensor, Tensor, _Projection, Tensor] | None = None
        self._borrowed: set[int] = set()  # memory of the model's own weights, by address
        # Another number after a sync or reserve that put anything a step reads into another place.
        self.layout = 0
        self.sync()

    @torch.no_grad()
    def sync(self, in_place: bool = False) -> None:
        """Read the model's weights again after they changed.

        Args:
            in_place: copies of weights stay where they lie, so that steps that were recorded remain valid. Else the
                old copies are given up before new ones are made.
        """
        trunk = self.model.model
        join = sum(p.numel() for p in self.model.parameters()) < JOIN_BELOW_PARAMETERS
        # Between a product and what would be folded into it, a norm of heads would undo it.
        heads_are_normed = hasattr(trunk.layers[0].self_attn, "q_norm")
        self._folded = join and self.dtype == torch.float32 and not heads_are_normed
        self._scale = 1.0 if self._folded else self.head_dim**-0.5
        projections = functools.partial(_projections, join=join, dtype=self.dtype)
        old_layers, old_outer, lent = (self._layers, self._outer, self._borrowed) if in_place else ([], None, set())
        before = [place(x) for x in tensors((old_layers, old_outer))]
        self._borrowed = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        self._layers = []
        for index, layer in enumerate(trunk.layers):
            attention, mlp = layer.self_attn, layer.mlp
            made = _Layer(
                layer.input_layernorm.weight.detach().to(self.dtype),
                projections([attention.q_proj, attention.k_proj, attention.v_proj]),
                self._head_norms(attention) if heads_are_normed else None,
                projections([attention.o_proj])[0],
                layer.post_attention_layernorm.weight.detach().to(self.dtype),
                projections([mlp.gate_proj, mlp.up_proj]),
                projections([mlp.down_proj])[0],
            )
            made = self._fold(made) if self._folded else made
            old = old_layers[index] if index < len(old_layers) else None
            self._layers.append(refreshed(old, made, lent, self._borrowed))
        norm = trunk.norm.weight.detach().to(self.dtype)
        outer = (
            trunk.embed_tokens.weight.detach().to(self.dtype),
            norm,
            projections([self.model.lm_head])[0],
            norm.new_full((1,), self.eps),
        )
        outer = refreshed(old_outer, outer, lent, self._borrowed)
        self._outer, (self._embedding, self._norm, self._head, self._eps) = outer, outer
        self.layout += [place(x) for x in tensors((self._layers, self._outer))] != before

    def _fold(self, layer: _Layer) -> _Layer:
        """A layer whose products include the norm before them and the scale of the queries.

        The two coordinates of a plane of the rotary embedding come to stand side by side, as those of a complex number;
        scores don't depend on the order of coordinates. Weights lie in memory as the product reads them.
        """
        norm_1, qkv, _, out, norm_2, gate_up, down = layer
        assert norm_1 is not None
        assert norm_2 is not None
        heads = self.heads + 2 * self.kv_heads
        order = torch.arange(heads * self.head_dim, device=norm_1.device).view(heads, 2, self.head_dim // 2)
        values = order[-self.kv_heads :].flatten()
        order = torch.cat((order[: -self.kv_heads].transpose(1, 2).flatten(), values))
        scale = torch.ones(heads, self.head_dim, device=norm_1.device)
        scale[: self.heads] = self.head_dim**-0.5
        scale = scale.flatten()
        weight, bias = qkv[0].weight, qkv[0].bias
        joined = _Projection(weight[order] * norm_1 * scale[:, None], None if bias is None else bias[order] * scale)
        gated = _Projection(gate_up[0].weight * norm_2, gate_up[0].bias)
        return _Layer(None, [_laid_out(joined)], None, _laid_out(out), None, [_laid_out(gated)], _laid_out(down))

    def _head_norms(self, attention: Any) -> Tensor:
        """The weights of a layer's norms of queries and keys, a row a head."""
        weights = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.kv_heads, -1)]
        return torch.cat(weights).detach().to(self.dtype)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` requests of up to `length` tokens; what is cached is kept."""
        if not self.cache.reserve(rows, length):
            return
        self.layout += 1
        positions = torch.arange(self.cache.num_positions, device=self._embedding.device)[None]
        cos, sin = self.model.model.rotary_emb(self._embedding[:1], positions)
        half = self.head_dim // 2
        self._angles = [torch.complex(cos[0, :, :half], sin[0, :, :half])] if self._folded else [cos[0], sin[0]]
        self._angles = [x[:, None] for x in self._angles]

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows for these prompts; gives the logits after each prompt's last token, (b, V).

        A prompt that comes several times (candidates of a pair, best of n) is computed once.
        """
        start, count, device = len(self.lengths), len(prompts), self._embedding.device
        numbers: dict[tuple[int, ...], int] = {}
        copies = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        unique = list(numbers)
        self.reserve(start + count, max(map(len, unique)) + 1)
        self.lengths = torch.cat([self.lengths, torch.tensor([len(prompt) for prompt in prompts])])
        last = []
        for first, end in _groups([len(prompt) for prompt in unique], device):
            rows = [start + row for row, number in enumerate(copies) if first <= number < end]
            last.append(self._prefill(unique[first:end], rows, [copies[row - start] - first for row in rows]))
        return self._logits(torch.cat(last)).float()[torch.tensor(copies, device=device)]

    def _prefill(self, prompts: Sequence[Sequence[int]], rows: list[int], copies: list[int]) -> Tensor:
        """States after each prompt's last token, (b, D), before the final norm; `rows` keep the keys and values of the
        prompts that `copies` names."""
        count, device = len(prompts), self._embedding.device
        width = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
        target, source = torch.tensor([rows, copies], device=device)
        last = torch.tensor([i * width + len(prompt) - 1 for i, prompt in enumerate(prompts)], device=device)
        real = torch.arange(width, device=device) <= (last % width)[:, None, None, None]
        angles = [x[:width].repeat(count, 1, 1) for x in self._angles]
        hidden = F.embedding(ids.view(-1), self._embedding)
        for index, (norm_1, qkv, head_norms, out, norm_2, gate_up, down) in enumerate(self._layers):
            query, pairs = self._attention_inputs(self._normed(hidden, norm_1), qkv, head_norms, angles)
            # (2, b, kv_heads, width, head_dim)
            keys_values = pairs.view(count, width, 2, self.kv_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            self.cache.write(index, keys_values, target, source)
            # Behind the last layer's keys and values only what was asked for is computed. Before, padding stands on the
            # right, so that the causal mask alone hides it from real tokens.
            behind = index == len(self._layers) - 1
            if behind:
                query, hidden = query[last], hidden[last]
            attended = F.scaled_dot_product_attention(
                query.view(count, -1, self.heads, self.head_dim).transpose(1, 2),
                keys_values[0],
                keys_values[1],
                attn_mask=real if behind else None,
                is_causal=not behind,
                scale=self._scale,
                enable_gqa=self.kv_heads != self.heads,
            )
            attended = attended.transpose(1, 2).reshape(len(hidden), -1)
            hidden = _added(hidden, attended, out)
            hidden = _added(hidden, self._gated(self._normed(hidden, norm_2), gate_up), down)
        return hidden

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Append one token to every row, ids (n,), and give the logits that follow it, (n, V)."""
        count = len(ids)
        positions, self.lengths = self.lengths, self.lengths + 1
        shortest, width = (int(x) for x in self.lengths.aminmax())
        self.reserve(count, width)
        # On a GPU a part of a block costs no more than its share, and what is masked need not be computed.
        sizes = self.cache.sizes(width, whole=ids.device.type != "cuda")
        blocks = self.cache.covering(width)
        masked = next((block.start for block in blocks if block.start + block.size > shortest), sum(sizes))
        views = self.cache.views(count, sizes)
        return self.step(ids, positions.to(ids.device), views, sizes, masked).float()

    def step(self, ids: Tensor, positions: Tensor, views: Views, sizes: list[int], masked: int) -> Tensor:
        """One token of every row: its keys and values are cached, and the logits that follow it come back, (n, V).

        Shapes depend on the arguments' shapes alone, and nothing of it waits for the device: it can be recorded.

        Args:
            ids, positions: (n,), where each row's token stands.
            views, sizes: of the cached positions that are looked at, see `KeyValueCache.views`.
            masked: positions before it are seen by every row.
        """
        count = len(ids)
        columns = torch.arange(masked, sum(sizes), device=ids.device)
        bias = torch.zeros((count, len(columns)), dtype=self._embedding.dtype, device=ids.device)
        bias.masked_fill_(columns[None] > positions[:, None], float("-inf"))
        bias = bias[:, None].expand(count, self.kv_heads, -1).reshape(count * self.kv_heads, 1, -1)
        places = self.cache.places(positions)
        angles = [x[positions] for x in self._angles]
        groups = self.heads // self.kv_heads
        hidden = F.embedding(ids, self._embedding)
        for index, (norm_1, qkv, head_norms, out, norm_2, gate_up, down) in enumerate(self._layers):
            query, pairs = self._attention_inputs(self._normed(hidden, norm_1), qkv, head_norms, angles)
            self.cache.put(index, places, pairs)
            query = query.view(count * self.kv_heads, groups, self.head_dim)
            if self._scale != 1:
                query = query * self._scale
            keys, values = views[index]
            parts = [torch.bmm(query, part) for part in keys]
            scores = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
            if len(columns):
                scores[:, :, masked:] += bias
            shares = torch.softmax(scores, dim=-1).split(sizes, dim=2)
            attended = torch.bmm(shares[0], values[0])
            for share, part in zip(shares[1:], values[1:], strict=True):
                attended.baddbmm_(share, part)
            hidden = _added(hidden, attended.view(count, -1), out)
            hidden = _added(hidden, self._gated(self._normed(hidden, norm_2), gate_up), down)
        return self._logits(hidden)

    def drop(self, ended: set[int]) -> list[int]:
        """Remove rows; rows from the end fill the gaps, so that few cached keys move.

        Returns:
            for every row that now stands, which row it was before.
        """
        kept = len(self.lengths) - len(ended)
        movers = [row for row in range(kept, len(self.lengths)) if row not in ended]
        gaps = [row for row in sorted(ended) if row < kept]
        order = list(range(kept))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            self.cache.move(movers, gaps, int(self.lengths[movers].max()))
        self.lengths = self.lengths[torch.tensor(order, dtype=torch.long)]
        return order

    def _normed(self, hidden: Tensor, weight: Tensor | None) -> Tensor:
        """RMS norm; without a weight where that is part of the product that follows."""
        if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
            return F.rms_norm(hidden, hidden.shape[-1:], weight, self.eps)
        # F.rms_norm is six operations on CPU and takes twice as long.
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        normed = hidden * torch.addcmul(self._eps, length, length, value=1 / hidden.shape[-1]).rsqrt_()
        return normed if weight is None else normed.mul_(weight)

    def _attention_inputs(
        self, hidden: Tensor, qkv: list[_Projection], head_norms: Tensor | None, angles: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Queries (n, heads, head_dim) and keys before values (n, 2 * kv_heads, head_dim), each whole in memory.

        Queries and keys are rotated.
        """
        shape = (len(hidden), -1, self.head_dim)
        if self._folded:
            states = _linear(hidden, qkv[0]).view(shape)
            turned = states[:, : self.heads + self.kv_heads].unflatten(-1, (-1, 2))
            torch.view_as_complex(turned).mul_(angles[0])
            return states[:, : self.heads].contiguous(), states[:, self.heads :].contiguous()
        cos, sin = angles
        if len(qkv) == 1:
            both, value = _linear(hidden, qkv[0]).view(shape).split([self.heads + self.kv_heads, self.kv_heads], dim=1)
            if head_norms is not None:
                both = self._normed(both, None) * head_norms
            query, key = rotated(both, cos, sin).split([self.heads, self.kv_heads], dim=1)
        else:
            query, key, value = (_linear(hidden, projection).view(shape) for projection in qkv)
            if head_norms is not None:
                query = self._normed(query, None) * head_norms[: self.heads]
                key = self._normed(key, None) * head_norms[self.heads :]
            query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        return query.contiguous(), torch.cat((key, value), dim=1)

    def _gated(self, hidden: Tensor, gate_up: list[_Projection]) -> Tensor:
        if len(gate_up) == 1:
            gate, up = _linear(hidden, gate_up[0]).chunk(2, dim=-1)
        else:
            gate, up = (_linear(hidden, projection) for projection in gate_up)
        return F.silu(gate, inplace=True).mul_(up)

    def _logits(self, hidden: Tensor) -> Tensor:
        return _linear(self._normed(hidden, self._norm), self._head)


def _projections(modules: Sequence[nn.Linear], join: bool, dtype: torch.dtype) -> list[_Projection]:
    """Of linear layers that share their input, joined into one where asked.

    A layer without bias beside one with bias counts as bias zero.
    """
    parts = [_projection(module, join, dtype) for module in modules]
    if not join or len(parts) == 1:
        return parts
    weight = torch.cat([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return [_Projection(weight, None)]
    biases = [weight.new_zeros(len(weight)) if part.bias is None else part.bias for part in parts]
    return [_Projection(weight, torch.cat(biases))]


def _projection(module: nn.Linear, merge: bool, dtype: torch.dtype) -> _Projection:
    """What a linear layer multiplies with. An adapter is merged where asked or where there is a copy anyway."""
    weight, added = module.weight.detach(), low_rank(module)
    bias = None if module.bias is None else module.bias.detach().to(dtype)
    if added is not None and (merge or weight.dtype != dtype):
        weight, added = torch.addmm(weight, added[1], added[0]), None
    return _Projection(weight.to(dtype), bias, added)


def _linear(states: Tensor, projection: _Projection) -> Tensor:
    product = F.linear(states, projection.weight, projection.bias)
    if projection.low_rank is None:
        return product
    a, b = projection.low_rank
    return product.addmm_(states @ a.t(), b.t())


def _laid_out(projection: _Projection) -> _Projection:
    """The same matrix, column by column in memory: F.linear reads it so; the fewer inputs, the less that matters."""
    return projection._replace(weight=projection.weight.t().contiguous().t())


def _added(hidden: Tensor, states: Tensor, projection: _Projection) -> Tensor:
    """`hidden` plus the projected states, in its place."""
    hidden.addmm_(states, projection.weight.t())
    if projection.low_rank is not None:
        a, b = projection.low_rank
        hidden.addmm_(states @ a.t(), b.t())
    return hidden if projection.bias is None else hidden.add_(projection.bias)


def _groups(lengths: Sequence[int], device: torch.device) -> list[tuple[int, int]]:
    """Prompts first .. end - 1 that run through the layers together: few enough tokens for the cache of a CPU."""
    limit = _PREFILL_TOKENS_CPU if device.type == "cpu" else sum(lengths)
    groups: list[tuple[int, int]] = []
    first = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - first) * max(lengths[first : end + 1]) > limit:
            groups.append((first, end))
            first = end
    return groups
