"""Attention inside trees against softmax(q·kᵀ/√d + mask)·v written out, tree by tree."""

from __future__ import annotations

import pytest
import torch

from models.preference import tree_attention
from models.preference.tree_attention import TreeAttention
from models.preference.trees import Tree, pair_trees, visibility
from tests.models.preference.tree_world import BATCH, NO_LIMIT, SINGLES, dialogue, pair

CPU = torch.device("cpu")
ROUNDING = 1e-5  # float32, sums in another order, relative to the largest
TREES = {
    "dialogues and pairs": lambda: pair_trees(BATCH, NO_LIMIT),
    "one pair": lambda: pair_trees(SINGLES[:1], NO_LIMIT),
    "a long dialogue": lambda: pair_trees(dialogue(5, turns=12), NO_LIMIT),
}
HEADS = {"as many keys as queries": (4, 4), "two queries a key": (4, 2), "one key": (3, 1)}


def drawn(trees: list[Tree], heads: tuple[int, int], at_reads: bool, dtype: torch.dtype = torch.float32):
    """Queries, keys, values and weights of a sum over the result."""
    generator = torch.Generator().manual_seed(2)
    tokens = sum(map(len, trees))
    queries = sum(len(tree.reads) for tree in trees) if at_reads else tokens
    shapes = (queries, heads[0], 6), (tokens, heads[1], 6), (tokens, heads[1], 6)
    q, k, v = (torch.randn(shape, generator=generator, dtype=dtype).mul_(1.5).requires_grad_() for shape in shapes)
    return (q, k, v), torch.randn(queries, heads[0] * 6, generator=generator, dtype=dtype)


def written_out(trees: list[Tree], q, k, v, at_reads: bool):
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    parts, token, query = [], 0, 0
    for tree in trees:
        rows = torch.tensor(tree.reads) if at_reads else None
        mask = visibility(torch.tensor(tree.subtree_ends.tolist()), rows)
        count = len(tree.reads) if at_reads else len(tree)
        mine, keys, values = (
            x[start : start + size].transpose(0, 1)
            for x, start, size in ((q, query, count), (k, token, len(tree)), (v, token, len(tree)))
        )
        weights = (mine @ keys.transpose(1, 2) / q.shape[-1] ** 0.5 + mask).softmax(-1)
        parts.append((weights @ values).transpose(0, 1).flatten(1))
        token, query = token + len(tree), query + count
    return torch.cat(parts)


@pytest.mark.parametrize("at_reads", [False, True], ids=["tokens", "reads"])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("kept", [0, 12, 512])
def test_blocks_are_the_sum_written_out_with_its_gradients(name, heads, at_reads, kept, monkeypatch):
    # Blocks of five queries: paths and branches of several blocks, and the last of each smaller.
    monkeypatch.setattr(tree_attention, "QUERIES", 5)
    monkeypatch.setattr(tree_attention, "KEPT_KEYS", kept)
    trees = TREES[name]()
    inputs, weights = drawn(trees, heads, at_reads)
    expected = written_out(trees, *inputs, at_reads)
    found = TreeAttention(trees, CPU)(*inputs, at_reads=at_reads)
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()
    for mine, its in zip(*(torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected)), strict=True):
        assert (mine - its).abs().max() <= ROUNDING * its.abs().max()


@pytest.mark.parametrize("at_reads", [False, True], ids=["tokens", "reads"])
def test_gradients_agree_with_finite_differences(at_reads):
    trees = pair_trees([pair([5, 6], [9, 2], [8, 7, 2]), SINGLES[0]], NO_LIMIT)
    inputs, _ = drawn(trees, (2, 1), at_reads, torch.float64)
    attention = TreeAttention(trees, CPU)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, at_reads=at_reads), inputs)


def test_equal_scores_average_what_is_seen_by_hand():
    # [5 | 8 7 2 | 9 2]: tokens 0 to 3 are the path, 4 and 5 the branch after token 0 (test_a_pair_by_hand).
    trees = pair_trees([pair([5], [9, 2], [8, 7, 2])], NO_LIMIT)
    values = torch.tensor([6.0, 12.0, 0.0, 2.0, 4.0, 5.0])[:, None, None]
    q, k = torch.zeros(6, 1, 1), torch.zeros(6, 1, 1)
    attention = TreeAttention(trees, CPU)
    assert attention(q, k, values, at_reads=False)[:, 0].tolist() == pytest.approx([6, 9, 6, 5, 5, 5])
    # Read at 5 (better) and 3 (worse): (6 + 4 + 5) / 3 and (6 + 12 + 0 + 2) / 4.
    assert attention(q[:2], k, values, at_reads=True)[:, 0].tolist() == pytest.approx([5, 5])
    # Their gradients: a value takes 1 / (what is seen) of every query that sees it.
    values.requires_grad_()
    attention(q, k, values, at_reads=False).sum().backward()
    shares = [
        1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 2 + 1 / 3,
        1 / 2 + 1 / 3 + 1 / 4,
        1 / 3 + 1 / 4,
        1 / 4,
        1 / 2 + 1 / 3,
        1 / 3,
    ]
    assert values.grad[:, 0, 0].tolist() == pytest.approx(shares)


@pytest.mark.parametrize("at_reads", [False, True], ids=["tokens", "reads"])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_the_rows_of_a_gpu_are_the_sum_written_out(heads, at_reads, monkeypatch):
    monkeypatch.setattr(tree_attention, "CALLS_ARE_CHEAP_ON", ())
    trees = TREES["dialogues and pairs"]()
    inputs, weights = drawn(trees, heads, at_reads)
    expected = written_out(trees, *inputs, at_reads)
    found = TreeAttention(trees, CPU)(*inputs, at_reads=at_reads)
    for mine, its in zip(*(torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected)), strict=True):
        assert (mine - its).abs().max() <= ROUNDING * its.abs().max()


@pytest.mark.parametrize("at_reads", [False, True], ids=["tokens", "reads"])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_half_precision_goes_span_by_span_and_stays_within_its_rounding(heads, at_reads):
    trees = TREES["dialogues and pairs"]()
    inputs, weights = drawn(trees, heads, at_reads)
    halves = [x.detach().bfloat16().requires_grad_() for x in inputs]
    # Of the same rounded numbers, so that only the computation differs: 8 bits of mantissa, sums of up to 40 terms.
    exact = [x.detach().float().requires_grad_() for x in halves]
    found = TreeAttention(trees, CPU)(*halves, at_reads=at_reads)
    expected = written_out(trees, *exact, at_reads)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() <= 0.02 * expected.abs().max()
    mine = torch.autograd.grad((found.float() * weights).sum(), halves)
    its = torch.autograd.grad((expected * weights).sum(), exact)
    for half, full in zip(mine, its, strict=True):
        assert (half.float() - full).abs().max() <= 0.02 * full.abs().max()


def test_memory_for_the_backward_grows_linearly_beyond_the_kept_keys():
    def kept(length: int) -> int:
        ids = list(range(3, 3 + length))
        trees = pair_trees([pair(ids, [1, 2], [2])], NO_LIMIT)
        inputs, _ = drawn(trees, (1, 1), at_reads=False)
        numbers = 0

        def count(x):
            nonlocal numbers
            numbers += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            TreeAttention(trees, CPU)(*inputs, at_reads=False)
        return numbers

    short, long, longer = (kept(tree_attention.KEPT_KEYS * times) for times in (1, 2, 3))
    assert longer - long == pytest.approx(long - short, rel=0.05)
