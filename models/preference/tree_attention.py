"""Attention inside trees of comparisons: what a token sees are the tokens before it in its own sequence.

A tree is cut into spans: its longest path, which is causal, and the branches that hang on it, which see the path up to
their fork and themselves (`Tree.spans`). In float32 on CPU the queries of a span meet just the keys that they may see,
some hundred at a time, in plain products whose weights are kept for the backward; with heads of 32 that is twice as
fast as PyTorch's fused kernel (docs/log/trees.md, "Attention of trees as plain products"). Other formats go through
that kernel, span by span. On a GPU, where a call costs more than the padding that it avoids, trees are gathered into
the rows of one call.
Read next: `models/preference/tree_states.py`, `models/backbone/causal_attention.py`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.preference.trees import Span, Tree, visibility

# Where an attention call costs less than the padding and hidden tokens that it saves.
CALLS_ARE_CHEAP_ON = ("cpu",)

# Queries that meet their keys together: fewer make more calls, more compute more of what the triangle hides.
QUERIES = 96
# The weights of queries with more keys than this are computed again for the backward, so that memory grows linearly
# with the length of a text.
KEPT_KEYS = 512


class TreeAttention:
    """Attention inside each tree of a line of trees: N tokens in all, M of them read.

    The lines may be longer: what stands behind the trees is seen by nothing, sees nothing, and gets zeros.
    """

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        self._trees = trees
        self._lengths = [len(tree) for tree in trees]
        self._num_reads = [len(tree.reads) for tree in trees]
        self._ends = [torch.frombuffer(tree.subtree_ends, dtype=torch.int32) for tree in trees]
        self._padded = self.hides(device)
        if self._padded:
            self._make_rows(device)
        else:
            self._spans = [tree.spans() for tree in trees]
            self._made: dict[bool, list[_Block]] = {}

    @staticmethod
    def hides(device: torch.device) -> bool:
        """Whether it computes what a token does not see, and hides it, instead of leaving it out."""
        return device.type not in CALLS_ARE_CHEAP_ON

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, at_reads: bool) -> Tensor:
        """Attended values, (M, H·d) with `at_reads`, else (N, H·d).

        Args:
            q: rotated queries, (M, H, d) or (N, H, d).
            k, v: rotated keys and values, (N, K, d), K a divisor of H.
        """
        if not self._padded and q.dtype in (torch.float32, torch.float64):
            return _ByHand.apply(q, k, v, self._blocks(at_reads))  # type: ignore[no-untyped-call, no-any-return]
        attended = self._by_rows(q, k, v, at_reads) if self._padded else self._by_spans(q, k, v, at_reads)
        return F.pad(attended, (0, 0, 0, len(q) - len(attended)))

    def _by_rows(self, q: Tensor, k: Tensor, v: Tensor, at_reads: bool) -> Tensor:
        rows, mask = (self._read_rows, self._read_mask) if at_reads else (self._rows, self._mask)
        return rows.line(_fused(rows.padded(q), self._rows.padded(k), self._rows.padded(v), mask[:, None]))

    def _make_rows(self, device: torch.device) -> None:
        self._rows, self._read_rows = _Rows(self._lengths, device), _Rows(self._num_reads, device)
        width, most = max(self._lengths), max(self._num_reads)
        # Nothing looks at padding, and padding looks at something, so that no softmax is empty.
        ends = torch.stack([F.pad(row, (0, width - len(row)), value=width) for row in self._ends])
        reads = torch.tensor([tree.reads + [0] * (most - len(tree.reads)) for tree in self._trees])
        self._mask = visibility(ends.to(device))
        self._read_mask = self._mask.gather(1, reads.to(device)[:, :, None].expand(-1, -1, width))

    def _blocks(self, at_reads: bool) -> list[_Block]:
        """The blocks of all trees, made once for all layers."""
        if at_reads not in self._made:
            self._made[at_reads] = list(self._read_blocks() if at_reads else self._token_blocks())
        return self._made[at_reads]

    def _token_blocks(self) -> Iterator[_Block]:
        triangle = _triangle(QUERIES)
        offset = 0
        for tree, ends, spans in zip(self._trees, self._ends, self._spans, strict=True):
            for span in spans:
                path = slice(offset, offset + span.seen) if span.seen else _EMPTY
                # Without a fork, as the path or a branch of its own, a span is causal.
                causal = not span.start or min(tree.subtree_ends[span.start : span.end]) == span.end
                # The shallowest of several branches sees the path up to here, and the others more.
                by_all = min(tree.positions[span.start : span.end])
                for start, end in _cuts(span.start, span.end):
                    queries, own = slice(offset + start, offset + end), slice(offset + span.start, offset + end)
                    if causal:
                        yield _Block(queries, path, own, triangle[: end - start, : end - start])
                    else:
                        columns = torch.cat((torch.arange(by_all, span.seen), torch.arange(span.start, end)))
                        yield _Block(queries, path, own, visibility(ends, torch.arange(start, end), columns))
            offset += len(tree)

    def _read_blocks(self) -> Iterator[_Block]:
        token = read = 0
        for tree, ends in zip(self._trees, self._ends, strict=True):
            mask = visibility(ends, torch.tensor(tree.reads))
            for start, end in _cuts(0, len(tree.reads)):
                keys = slice(token, token + len(tree))
                yield _Block(slice(read + start, read + end), _EMPTY, keys, mask[start:end])
            token, read = token + len(tree), read + len(tree.reads)

    def _by_spans(self, q: Tensor, k: Tensor, v: Tensor, at_reads: bool) -> Tensor:
        # Heads first, and split rather than sliced: the gradient of n slices is n tensors of the whole size.
        sizes = self._num_reads if at_reads else self._lengths
        q_trees, k_trees, v_trees = (
            x[: sum(each)].transpose(0, 1)[None].split(each, dim=2)
            for x, each in ((q, sizes), (k, self._lengths), (v, self._lengths))
        )
        attended = []
        for tree, heads in enumerate(zip(q_trees, k_trees, v_trees, strict=True)):
            if at_reads:
                attended.append(_fused(*heads, self._read_masks[tree]))
                continue
            spans = self._spans[tree]
            q_spans = heads[0].split([span.end - span.start for span in spans], dim=2)
            k_spans, v_spans = (_SeenBySpans.apply(x, spans) for x in heads[1:])  # type: ignore[no-untyped-call]
            for parts in zip(q_spans, k_spans, v_spans, self._span_masks[tree], strict=True):
                attended.append(_fused(*parts))
        return torch.cat(attended, dim=2)[0].transpose(0, 1).flatten(1)

    @functools.cached_property
    def _read_masks(self) -> list[Tensor]:
        return [visibility(ends, torch.tensor(tree.reads)) for tree, ends in zip(self._trees, self._ends, strict=True)]

    @functools.cached_property
    def _span_masks(self) -> list[list[Tensor | None]]:
        return [
            [_mask_of(ends, span) if span.start else None for span in spans]
            for ends, spans in zip(self._ends, self._spans, strict=True)
        ]


@functools.cache
def _triangle(size: int) -> Tensor:
    return visibility(torch.full((size,), size))


def _mask_of(subtree_ends: Tensor, span: Span) -> Tensor:
    own = torch.arange(span.start, span.end)
    return visibility(subtree_ends, own, torch.cat((torch.arange(span.seen), own)))


class _Block(NamedTuple):
    """Queries and the keys that they meet: those of `path`, then `own`; places in the lines of all trees."""

    queries: slice
    path: slice  # empty for the path itself
    own: slice
    mask: Tensor  # additive, over the last of these keys; those before are seen by all the queries


_EMPTY = slice(0, 0)


def _cuts(start: int, end: int) -> Iterator[tuple[int, int]]:
    return itertools.pairwise([*range(start, end, QUERIES), end])


class _ByHand(torch.autograd.Function):
    """Attention block by block, the gradients worked out by hand.

    Heads are views of the token-major line throughout: a product reads rows with a stride as fast as without, and
    nothing is transposed in memory. Queries of one key-value head are met one after the other.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[_Block]) -> Tensor:
        # Scaled here once instead of every score.
        q = q * q.shape[-1] ** -0.5
        kept, attended = [], []
        for block, queries in zip(blocks, _by_block(q, k, blocks), strict=True):
            keys, values = _met(k, block), _met(v, block)
            keys = keys.transpose(1, 2)
            for mine in queries:
                weights = _weights(mine, keys, block.mask)
                attended.append(torch.bmm(weights, values))
                if _is_kept(block):
                    kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.blocks = blocks
        return _in_line(attended, q, k).flatten(1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        blocks = ctx.blocks
        dout = gradient.reshape(q.shape)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        remembered = iter(kept)
        dqs = []
        for block, queries, douts in zip(blocks, _by_block(q, k, blocks), _by_block(dout, k, blocks), strict=True):
            keys, values = _met(k, block), _met(v, block)
            values = values.transpose(1, 2)
            dkeys, dvalues = _Gathered(dk, block), _Gathered(dv, block)
            for mine, rows in zip(queries, douts, strict=True):
                weights = next(remembered) if _is_kept(block) else _weights(mine, keys.transpose(1, 2), block.mask)
                dvalues.add(weights, rows)
                dweights = torch.bmm(rows, values)
                dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype, grad_input=dweights)
                dqs.append(torch.bmm(dscores, keys))
                dkeys.add(dscores, mine)
            dkeys.scatter()
            dvalues.scatter()
        return _in_line(dqs, q, k).mul_(q.shape[-1] ** -0.5), dk, dv, None


def _by_block(x: Tensor, k: Tensor, blocks: Sequence[_Block]) -> Iterator[Sequence[Tensor]]:
    """K×M×d views of the queries of each block, one for each query head of a key-value head."""
    sizes = [block.queries.stop - block.queries.start for block in blocks]
    x = x[: sum(sizes)]
    if x.shape[1] == k.shape[1]:
        return ((rows,) for rows in x.transpose(0, 1).split(sizes, 1))
    grouped = x.unflatten(1, (k.shape[1], -1)).permute(2, 1, 0, 3)
    return (rows.unbind() for rows in grouped.split(sizes, 2))


def _in_line(parts: list[Tensor], q: Tensor, k: Tensor) -> Tensor:
    """N×H×d of what `_by_block` cuts, as K×M×d tensors one after the other."""
    groups = q.shape[1] // k.shape[1]
    if groups == 1:
        line = torch.cat([part.transpose(0, 1) for part in parts])
    else:
        line = torch.cat([torch.stack(parts[i : i + groups]).permute(2, 1, 0, 3) for i in range(0, len(parts), groups)])
        line = line.flatten(1, 2)
    return line if len(line) == len(q) else F.pad(line, (0, 0, 0, 0, 0, len(q) - len(line)))


def _met(x: Tensor, block: _Block) -> Tensor:
    """K×S×d keys or values that the block meets: a view where they stand together, else a copy."""
    if block.path.start == block.path.stop:
        return x[block.own].transpose(0, 1)
    return torch.cat((x[block.path], x[block.own])).transpose(0, 1)


def _weights(q: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """K×M×S attention weights of scaled queries K×M×d for keys K×d×S."""
    scores = torch.bmm(q, keys)
    scores[:, :, scores.shape[2] - mask.shape[1] :].add_(mask)
    return torch.softmax(scores, dim=-1, out=scores)


def _is_kept(block: _Block) -> bool:
    path, own = block.path, block.own
    return path.stop - path.start + own.stop - own.start <= KEPT_KEYS


class _Gathered:
    """Sums the gradients of what `_met` gathers into those of the line."""

    def __init__(self, line: Tensor, block: _Block) -> None:
        self._line, self._block = line, block
        self._copied = block.path.start != block.path.stop
        # A view takes the sums at once, a copy is added at the end.
        self._sum = None if self._copied else line[block.own].transpose(0, 1)

    def add(self, weights: Tensor, rows: Tensor) -> None:
        """Add weightsᵀ·rows of K×M×S weights and K×M×d rows."""
        if self._sum is None:
            self._sum = torch.bmm(weights.transpose(1, 2), rows)
        else:
            self._sum.baddbmm_(weights.transpose(1, 2), rows)

    def scatter(self) -> None:
        if self._copied and self._sum is not None:
            seen = self._block.path.stop - self._block.path.start
            tokens = self._sum.transpose(0, 1)
            self._line[self._block.path].add_(tokens[:seen])
            self._line[self._block.own].add_(tokens[seen:])


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
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
