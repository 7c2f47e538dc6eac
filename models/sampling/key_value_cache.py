"""The keys and values of what running requests have said so far, in blocks of positions.

`models/sampling/llama.py` writes and reads it; which request stands in which row is the decoder's to know.
"""

import contextlib
import itertools
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

# Cached keys and values lie in blocks of so many positions, each block whole in memory: a product with part of a longer
# buffer took 2 to 4 times as long on CPU (docs/log/sampler.md, "Speed of the sampler"). Later blocks are larger, so
# that there are few of them.
_FIRST_BLOCK_CPU = 32
_FIRST_BLOCK_GPU = 512
_BLOCKS_OF_A_SIZE = 4

# By layer and block the transposed keys (lines, head_dim, size) and the values (lines, size, head_dim).
Views = list[tuple[list[Tensor], list[Tensor]]]


@dataclass(frozen=True)
class Block:
    """Positions `start` .. `start + size - 1` of every row; its vectors begin at place `base` of a layer's cache."""

    start: int
    size: int
    base: int


class KeyValueCache:
    """Room for rows of positions, which grows and keeps what is in it.

    A layer's keys and values are one tensor (2, places, head_dim). Row r, key-value head h and position p of a
    block have the place base + (r * kv_heads + h) * size + p - start.
    """

    def __init__(self, num_layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.blocks: list[Block] = []
        self._dtype, self._device = dtype, device
        self._rows = 0  # that there is room for
        self._places = 0  # of a layer's keys
        self._layers = [torch.empty(0) for _ in range(num_layers)]
        self._sizes = self._firsts = torch.zeros(0, dtype=torch.long)
        self._viewed: tuple[tuple[int, list[int]], Views] | None = None

    @property
    def num_positions(self) -> int:
        """How many positions a row has room for."""
        return self.blocks[-1].start + self.blocks[-1].size if self.blocks else 0

    def reserve(self, rows: int, length: int) -> bool:
        """Make room for `rows` requests of up to `length` tokens; True where everything came to lie elsewhere."""
        have_length = self.num_positions
        if rows <= self._rows and length <= have_length:
            return False
        # Doubling keeps the copies of a growing server below the cost of filling the cache.
        rows = self._rows if rows <= self._rows else max(rows, 2 * self._rows)
        length = have_length if length <= have_length else max(length, 2 * have_length)
        old_blocks, old_rows = self.blocks, self._rows
        self.blocks, self._rows = _blocks(rows * self.kv_heads, length, self._device), rows
        last = self.blocks[-1]
        self._places = last.base + rows * self.kv_heads * last.size
        self._viewed = None
        for index in range(len(self._layers)):
            # One by one, so that no more than one layer is there twice.
            self._layers[index] = self._grown(self._layers[index], old_blocks, old_rows)
        sizes = torch.tensor([block.size for block in self.blocks], device=self._device)
        # For every position: the size of its block, and the place of row 0, head 0 there.
        self._sizes = torch.repeat_interleave(sizes, sizes)
        firsts = torch.tensor([block.base - block.start for block in self.blocks], device=self._device)
        self._firsts = torch.repeat_interleave(firsts, sizes) + torch.arange(len(self._sizes), device=self._device)
        return True

    def covering(self, width: int) -> list[Block]:
        """The blocks of positions 0 .. width - 1."""
        return [block for block in self.blocks if block.start < width]

    def sizes(self, width: int, whole: bool = True) -> list[int]:
        """How many positions of each block a row of up to `width` positions needs; whole blocks where asked."""
        blocks = self.covering(width)
        return [block.size if whole else min(block.size, width - block.start) for block in blocks]

    def views(self, count: int, sizes: list[int]) -> Views:
        """The cached keys and values of the first rows at the first positions, `sizes` of them in each block."""
        # Making them takes as long as a small product, so that they are kept while rows and blocks stay the same.
        if self._viewed is None or self._viewed[0] != (count, sizes):
            cut = []
            for layer in self._layers:
                keys, values = (
                    [self._view(cache, block, count)[:, :size] for block, size in zip(self.blocks, sizes, strict=False)]
                    for cache in layer
                )
                cut.append(([part.transpose(1, 2) for part in keys], values))
            self._viewed = (count, sizes), cut
        return self._viewed[1]

    def write(self, index: int, keys_values: Tensor, rows: Tensor, copies: Tensor) -> None:
        """Write layer `index` of whole rows from their first position on.

        Args:
            keys_values: (2, b, kv_heads, width, head_dim).
            rows, copies: (n,), the rows to be written and which of the b each of them keeps.
        """
        width = keys_values.shape[3]
        for cache, states in zip(self._layers[index], keys_values, strict=True):
            for block in self.covering(width):
                part = states[:, :, block.start : block.start + block.size]
                self._by_row(cache, block)[rows, :, : part.shape[2]] = part[copies]

    def places(self, positions: Tensor) -> Tensor:
        """Where the first rows keep these positions (n,), one a row: of its keys by head, then of its values."""
        count = len(positions)
        lines = torch.arange(count * self.kv_heads, device=positions.device).view(count, self.kv_heads)
        keys = self._firsts[positions][:, None] + lines * self._sizes[positions][:, None]
        return torch.cat((keys, keys + self._places), dim=1).view(-1)

    def put(self, index: int, places: Tensor, keys_values: Tensor) -> None:
        """Write keys before values (n, 2 * kv_heads, head_dim) of layer `index` to `places`."""
        self._layers[index].view(-1, self.head_dim).index_copy_(0, places, keys_values.view(-1, self.head_dim))

    def move(self, movers: list[int], gaps: list[int], width: int) -> None:
        """Copy the first `width` positions of some rows over those of others."""
        target, source = torch.tensor([gaps, movers], device=self._device)
        blocks = self.covering(width)
        for cache in itertools.chain.from_iterable(self._layers):
            for block in blocks:
                rows = self._by_row(cache, block)
                rows[target] = rows[source]

    def _grown(self, old_layer: Tensor, old_blocks: list[Block], old_rows: int) -> Tensor:
        """A layer with all the places that there are now, and in it what the old one holds."""
        layer = _zeros(2 * self._places * self.head_dim, self._dtype, self._device)
        layer = layer.view(2, self._places, self.head_dim)
        # Blocks of the same positions have the same size, whatever the length: sizes depend on their order.
        for old, block in zip(old_blocks, self.blocks, strict=False):
            for new, cache in zip(layer, old_layer, strict=True):
                self._view(new, block, old_rows).copy_(self._view(cache, old, old_rows))
        return layer

    def _by_row(self, cache: Tensor, block: Block) -> Tensor:
        """The block of every row, (rows, kv_heads, size, head_dim)."""
        return self._view(cache, block, self._rows).unflatten(0, (-1, self.kv_heads))

    def _view(self, cache: Tensor, block: Block, rows: int) -> Tensor:
        """The block of the first rows, (rows * kv_heads, size, head_dim)."""
        count = rows * self.kv_heads
        return cache[block.base : block.base + count * block.size].view(count, block.size, self.head_dim)


def _blocks(lines: int, length: int, device: torch.device) -> list[Block]:
    """Blocks for at least `length` positions of so many lines (rows times key-value heads)."""
    first = _FIRST_BLOCK_CPU if device.type == "cpu" else _FIRST_BLOCK_GPU
    blocks: list[Block] = []
    start = base = 0
    while start < length:
        block = Block(start, first << (len(blocks) // _BLOCKS_OF_A_SIZE), base)
        blocks.append(block)
        start, base = start + block.size, base + lines * block.size
    return blocks


def _zeros(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A cache's memory, (count,). Zeros, not empty: masked columns are still multiplied, and NaN x 0 is NaN.

    On CPU in large pages where the system has them: a step reads and writes the keys of every row, which lie some
    kilobytes from each other, and looking up small pages took a twelfth of it
    (docs/log/sampler.md, "Speed of the sampler, second round").
    """
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count, dtype=dtype, device=device)
    memory = mmap.mmap(-1, count * dtype.itemsize)
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)
