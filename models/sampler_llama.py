"""Decoding for the Llama and Qwen2 families with weights read straight from the Hugging Face model.

One forward without module calls, masks only where needed, and a key-value cache whose rows are
requests; `tests/models/test_sampler.py` holds it against the plain Hugging Face forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this size the cost of a step is launching operations, so projections that share an
# input are joined into one copy; above it the copy's memory would matter more.
_JOIN_BELOW_PARAMETERS = 50_000_000

# Cached keys and values lie in blocks of so many positions, each block whole in memory: a product with part of a longer
# buffer took 2 to 4 times as long on CPU (docs/log.md). Later blocks are larger, so that there are few of them.
_FIRST_BLOCK_CPU = 32
_FIRST_BLOCK_GPU = 512
_BLOCKS_OF_A_SIZE = 4

# Rotary embeddings whose angles depend on the length of the text cannot be tabulated.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")

_Projection = tuple[Tensor, Tensor | None]


def supports(model: Any) -> bool:
    """Whether this decoder computes what the model computes; others take the generic path."""
    config = getattr(model, "config", None)
    if type(model).__name__ not in ("LlamaForCausalLM", "Qwen2ForCausalLM") or config is None:
        return False
    rotary = (config.rope_parameters or {}).get("rope_type", "default")
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return rotary in FIXED_ROTARY and set(layers) == {"full_attention"} and config.hidden_act == "silu"


@dataclass(frozen=True)
class _Block:
    """Positions `start` .. `start + size - 1` of every row; its vectors begin at place `base` of a layer's cache."""

    start: int
    size: int
    base: int


class LlamaDecoder:
    """Key-value cache and forward; rows 0 .. n-1 are the running requests, in the engine's order.

    A layer's keys are one tensor (places, head_dim), its values another. Row r, key-value head h and position p of a
    block have the place base + (r * kv_heads + h) * size + p - start.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.eps = config.rms_norm_eps
        self.lengths = torch.zeros(0, dtype=torch.long, device=model.device)
        self._rows = 0  # that there is room for
        self._blocks: list[_Block] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._sizes = self._firsts = torch.zeros(0, dtype=torch.long)
        self._cos = self._sin = torch.empty(0)
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Read the model's weights again after they changed."""
        trunk = self.model.model
        join = sum(p.numel() for p in self.model.parameters()) < _JOIN_BELOW_PARAMETERS
        self._layers = []
        for layer in trunk.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self._layers.append(
                (
                    layer.input_layernorm.weight.detach(),
                    _projections([attention.q_proj, attention.k_proj, attention.v_proj], join),
                    _projections([attention.o_proj], False)[0],
                    layer.post_attention_layernorm.weight.detach(),
                    _projections([mlp.gate_proj, mlp.up_proj], join),
                    _projections([mlp.down_proj], False)[0],
                )
            )
        self._embedding = trunk.embed_tokens.weight.detach()
        self._norm = trunk.norm.weight.detach()
        self._head = _projections([self.model.lm_head], False)[0]

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` requests of up to `length` tokens; what is cached is kept."""
        have_length = self._blocks[-1].start + self._blocks[-1].size if self._blocks else 0
        if rows <= self._rows and length <= have_length:
            return
        # Doubling keeps the copies of a growing server below the cost of filling the cache.
        rows = self._rows if rows <= self._rows else max(rows, 2 * self._rows)
        length = have_length if length <= have_length else max(length, 2 * have_length)
        old_blocks, old_rows = self._blocks, self._rows
        self._blocks, self._rows = _blocks(rows * self.kv_heads, length, self._embedding.device), rows
        last = self._blocks[-1]
        places = last.base + rows * self.kv_heads * last.size
        for caches in (self._keys, self._values):
            old_caches = list(caches)
            caches.clear()
            for index in range(len(self._layers)):
                # Zeros, not empty: masked columns are still multiplied, and NaN x 0 is NaN.
                new = self._embedding.new_zeros((places, self.head_dim))
                # Blocks of the same positions have the same size, whatever the length: sizes depend on their order.
                for old, block in zip(old_blocks, self._blocks, strict=False):
                    self._view(new, block, old_rows).copy_(self._view(old_caches[index], old, old_rows))
                caches.append(new)
        device = self._embedding.device
        sizes = torch.tensor([block.size for block in self._blocks], device=device)
        # For every position: the size of its block, and the place of row 0, head 0 there.
        self._sizes = torch.repeat_interleave(sizes, sizes)
        firsts = torch.tensor([block.base - block.start for block in self._blocks], device=device)
        self._firsts = torch.repeat_interleave(firsts, sizes) + torch.arange(len(self._sizes), device=device)
        positions = torch.arange(len(self._sizes), device=device)[None]
        cos, sin = self.model.model.rotary_emb(self._embedding[:1], positions)
        self._cos, self._sin = cos[0], sin[0]

    def _view(self, cache: Tensor, block: _Block, rows: int) -> Tensor:
        """The block of the first rows, (rows * kv_heads, size, head_dim)."""
        count = rows * self.kv_heads
        return cache[block.base : block.base + count * block.size].view(count, block.size, self.head_dim)

    def _covering(self, width: int) -> list[_Block]:
        """The blocks of positions 0 .. width - 1."""
        return [block for block in self._blocks if block.start < width]

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows for these prompts; gives the logits after each prompt's last token, (b, V).

        A prompt that comes several times (candidates of a pair, best of n) is computed once.
        """
        start, count, device = len(self.lengths), len(prompts), self._embedding.device
        numbers: dict[tuple[int, ...], int] = {}
        copies = torch.tensor([numbers.setdefault(tuple(p), len(numbers)) for p in prompts], device=device)
        width = max(map(len, numbers))
        self.reserve(start + count, width + 1)
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in numbers], device=device)
        cos, sin = self._cos[:width, None], self._sin[:width, None]
        hidden = F.embedding(ids, self._embedding)
        for index, (norm_1, qkv, out, norm_2, gate_up, down) in enumerate(self._layers):
            normed = F.rms_norm(hidden, norm_1.shape, norm_1, self.eps)
            query, key, value = (x.transpose(1, 2) for x in self._attention_inputs(normed, qkv, cos, sin))
            for cache, states in ((self._keys[index], key), (self._values[index], value)):
                for block in self._covering(width):
                    part = states[:, :, block.start : block.start + block.size]
                    rows = self._view(cache, block, start + count).unflatten(0, (-1, self.kv_heads))[start:]
                    rows[:, :, : part.shape[2]] = part if len(ids) == count else part[copies]
            # Padding stands on the right, so that the causal mask alone hides it from real tokens.
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=self.kv_heads != self.heads
            )
            attended = attended.transpose(1, 2).reshape(len(ids), width, -1)
            hidden = hidden + F.linear(attended, *out)
            hidden = hidden + self._mlp(F.rms_norm(hidden, norm_2.shape, norm_2, self.eps), gate_up, down)
        lengths = torch.tensor([len(prompt) for prompt in numbers], device=device)
        last = hidden[torch.arange(len(ids), device=device), lengths - 1]
        self.lengths = torch.cat([self.lengths, lengths[copies]])
        return self._logits(last)[copies]

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Append one token to every row, ids (n,), and give the logits that follow it, (n, V)."""
        count = len(ids)
        self.lengths = self.lengths + 1
        positions = self.lengths - 1
        width = int(self.lengths.max())
        self.reserve(count, width)
        blocks = self._covering(width)
        sizes = [block.size for block in blocks]
        columns = torch.arange(sum(sizes), device=ids.device)
        if ids.device.type == "cuda":
            # There a part of a block costs no more than its share, and what is masked need not be computed.
            sizes[-1] = width - blocks[-1].start
            columns = columns[:width]
        bias = torch.zeros((count, len(columns)), dtype=self._embedding.dtype, device=ids.device)
        bias.masked_fill_(columns[None] > positions[:, None], float("-inf"))
        bias = bias[:, None].expand(count, self.kv_heads, -1).reshape(count * self.kv_heads, 1, -1)
        lines = torch.arange(count * self.kv_heads, device=ids.device).view(count, self.kv_heads)
        places = (self._firsts[positions][:, None] + lines * self._sizes[positions][:, None]).view(-1)
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        groups = self.heads // self.kv_heads
        scale = self.head_dim**-0.5
        hidden = F.embedding(ids, self._embedding)
        for index, (norm_1, qkv, out, norm_2, gate_up, down) in enumerate(self._layers):
            normed = F.rms_norm(hidden, norm_1.shape, norm_1, self.eps)
            query, key, value = self._attention_inputs(normed, qkv, cos, sin)
            self._keys[index].index_copy_(0, places, key.reshape(-1, self.head_dim))
            self._values[index].index_copy_(0, places, value.reshape(-1, self.head_dim))
            query = query.reshape(count * self.kv_heads, groups, self.head_dim) * scale
            keys, values = (
                [self._view(cache[index], block, count)[:, :size] for block, size in zip(blocks, sizes, strict=True)]
                for cache in (self._keys, self._values)
            )
            scores = [torch.bmm(query, part.transpose(1, 2)) for part in keys]
            weights = torch.softmax((torch.cat(scores, dim=2) if len(scores) > 1 else scores[0]).add_(bias), dim=-1)
            shares = weights.split(sizes, dim=2)
            attended = torch.bmm(shares[0], values[0])
            for share, part in zip(shares[1:], values[1:], strict=True):
                attended.baddbmm_(share, part)
            hidden = hidden + F.linear(attended.reshape(count, -1), *out)
            hidden = hidden + self._mlp(F.rms_norm(hidden, norm_2.shape, norm_2, self.eps), gate_up, down)
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
            target, source = torch.tensor([gaps, movers], device=self.lengths.device)
            blocks = self._covering(int(self.lengths[source].max()))
            for cache in (*self._keys, *self._values):
                for block in blocks:
                    rows = self._view(cache, block, len(self.lengths)).unflatten(0, (-1, self.kv_heads))
                    rows[target] = rows[source]
        self.lengths = self.lengths[torch.tensor(order, dtype=torch.long, device=self.lengths.device)]
        return order

    def _attention_inputs(
        self, hidden: Tensor, qkv: list[_Projection], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query (..., heads, head_dim), key and value (..., kv_heads, head_dim), the first two rotated."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        if len(qkv) == 1:
            both, value = (
                F.linear(hidden, *qkv[0]).view(shape).split([self.heads + self.kv_heads, self.kv_heads], dim=-2)
            )
            query, key = rotated(both, cos, sin).split([self.heads, self.kv_heads], dim=-2)
            return query, key, value
        query, key, value = (F.linear(hidden, *projection).view(shape) for projection in qkv)
        return rotated(query, cos, sin), rotated(key, cos, sin), value

    def _mlp(self, hidden: Tensor, gate_up: list[_Projection], down: _Projection) -> Tensor:
        if len(gate_up) == 1:
            gate, up = F.linear(hidden, *gate_up[0]).chunk(2, dim=-1)
        else:
            gate, up = (F.linear(hidden, *projection) for projection in gate_up)
        return F.linear(F.silu(gate) * up, *down)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(F.rms_norm(hidden, self._norm.shape, self._norm, self.eps), *self._head).float()


def _blocks(lines: int, length: int, device: torch.device) -> list[_Block]:
    """Blocks for at least `length` positions of so many lines (rows times key-value heads)."""
    first = _FIRST_BLOCK_CPU if device.type == "cpu" else _FIRST_BLOCK_GPU
    blocks: list[_Block] = []
    start = base = 0
    while start < length:
        block = _Block(start, first << (len(blocks) // _BLOCKS_OF_A_SIZE), base)
        blocks.append(block)
        start, base = start + block.size, base + lines * block.size
    return blocks


def _projections(modules: Sequence[nn.Linear], join: bool) -> list[_Projection]:
    """Weights and biases of linear layers that share their input, joined into one where asked.

    A layer without bias beside one with bias counts as bias zero.
    """
    pairs: list[_Projection] = [(m.weight.detach(), None if m.bias is None else m.bias.detach()) for m in modules]
    if not join or len(pairs) == 1:
        return pairs
    weight = torch.cat([weight for weight, _ in pairs])
    if all(bias is None for _, bias in pairs):
        return [(weight, None)]
    biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs]
    return [(weight, torch.cat(biases))]


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (..., head_dim) states, the two halves of a head being the plane.

    Source: Su et al. 2021, arXiv:2104.09864, in the half-split layout of Hugging Face checkpoints.
    """
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
