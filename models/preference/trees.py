"""Comparisons of one dialogue laid out as a tree, so that every token they share is computed once.

A preference pair is two sequences of ids that begin alike; the next turn of the same dialogue begins with one of them.
All of them together form a prefix tree (a trie): prompts and picked replies are its trunk, the other replies and every
end-of-context id its branches. A single pair is the smallest tree. Pure functions of their arguments. Read next:
`models/preference/tree_states.py`, which runs trees through a model.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from models.preference.comparison_set import common_prefix_length
from models.preference.pairs import TokenPair

# Spans shorter than this share an attention call with their neighbour: a call costs more than what it would leave out.
MIN_SPAN_TOKENS = 16


class Span(NamedTuple):
    """Neighbouring tokens of a tree that see at most the first `seen` tokens and each other."""

    start: int
    end: int
    seen: int


@dataclass(slots=True)
class Tree:
    """A prefix tree laid out in a row, parents before their children, the longest path first.

    The ancestors of a token are those before it whose subtree reaches beyond it:
    `j <= i < subtree_ends[j]`. That is all that a mask needs.
    """

    pairs: list[int]  # which of the given pairs
    ids: array[int]
    positions: array[int]  # depth in the tree: where the token stands in each sequence that holds it
    subtree_ends: array[int]  # index after the last token of the subtree below each token
    better_ends: list[int]  # index of the better side's end-of-context id, by pair
    worse_ends: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def reads(self) -> list[int]:
        """Where scores are read: first the better sides' ends, then the worse sides'."""
        return self.better_ends + self.worse_ends

    def spans(self) -> list[Span]:
        """The tree cut into its longest path, which comes first and is causal, and the branches that hang on it."""
        size = len(self.ids)
        # On the path a token's depth is its index; on a branch it is less.
        path = next((i for i, depth in enumerate(self.positions) if depth != i), size)
        spans = [Span(0, path, 0)]
        start = path
        while start < size:
            seen, end = self.positions[start], self.subtree_ends[start]
            # Branches come from the deepest fork to the shallowest, so the first of several sees most.
            while end < size and end - start < MIN_SPAN_TOKENS:
                end = self.subtree_ends[end]
            spans.append(Span(start, end, seen))
            start = end
        return spans


@dataclass(slots=True)
class _Node:
    """A run of ids without a fork in it, the forks after it, and the sides (pair, is better) that end with it."""

    ids: array[int]
    children: list[_Node] = field(default_factory=list)
    ends: list[tuple[int, bool]] = field(default_factory=list)


class _Trie:
    def __init__(self) -> None:
        self.root = _Node(array("i"))
        self.num_tokens = 0

    def shared(self, ids: array[int]) -> int:
        """How many leading ids are in the trie already."""
        node, start = self.root, 0
        while (child := _child(node, ids, start)) is not None:
            same = common_prefix_length(child.ids, ids[start:])
            start += same
            if same < len(child.ids):
                break
            node = child
        return start

    def add(self, ids: array[int], end: tuple[int, bool]) -> None:
        node, start = self.root, 0
        while (child := _child(node, ids, start)) is not None:
            same = common_prefix_length(child.ids, ids[start:])
            if same < len(child.ids):
                # Fork inside a run: what follows the fork becomes a child.
                below = _Node(child.ids[same:], child.children, child.ends)
                child.ids, child.children, child.ends = child.ids[:same], [below], []
            node, start = child, start + same
        if start < len(ids):
            node.children.append(leaf := _Node(ids[start:]))
            self.num_tokens += len(leaf.ids)
            node = leaf
        node.ends.append(end)

    def lay_out(self, members: list[int]) -> Tree:
        _longest_first(self.root)
        tree = Tree(list(members), array("i"), array("i"), array("i"), [0] * len(members), [0] * len(members))
        place = {member: i for i, member in enumerate(members)}
        # (node, depth of its first token); a node is met a second time, without depth, when its subtree is complete.
        stack: list[tuple[_Node, int | None]] = [(self.root, 0)]
        starts: list[tuple[int, int]] = []
        while stack:
            node, depth = stack.pop()
            if depth is None:
                first, last = starts.pop()
                tree.subtree_ends[first:last] = array("i", [len(tree.ids)]) * (last - first)
                continue
            first = len(tree.ids)
            tree.ids.extend(node.ids)
            tree.positions.extend(range(depth, depth + len(node.ids)))
            tree.subtree_ends.extend(node.ids)  # room; the value is set once the subtree is complete
            for member, is_better in node.ends:
                (tree.better_ends if is_better else tree.worse_ends)[place[member]] = len(tree.ids) - 1
            starts.append((first, len(tree.ids)))
            stack.append((node, None))
            stack.extend((child, depth + len(node.ids)) for child in reversed(node.children))
        return tree


def _longest_first(root: _Node) -> None:
    """Order the children of every node such that the first begins the longest path."""
    nodes = [root]
    for node in nodes:
        nodes.extend(node.children)
    longest: dict[int, int] = {}
    for node in reversed(nodes):
        # Sorting is stable: of equally long ones the earlier added stays first.
        node.children.sort(key=lambda child: -longest[id(child)])
        longest[id(node)] = len(node.ids) + (longest[id(node.children[0])] if node.children else 0)


def _child(node: _Node, ids: array[int], start: int) -> _Node | None:
    if start == len(ids):
        return None
    return next((child for child in node.children if child.ids[0] == ids[start]), None)


def pair_trees(pairs: Sequence[TokenPair], max_tokens: int, *, hidden_size: int | None = None) -> list[Tree]:
    """The trees of a batch: pairs of one dialogue share a tree of at most `max_tokens` where that is cheaper.

    Sharing s ids saves their whole way through the layers, and the n new tokens pay with copies of the keys that they
    see beyond their branch: so a pair joins when 8 · s > n. A tree of more than half of `max_tokens` also holds more
    memory than a chunk of small ones; there it joins when s > n.

    Trees come in the order of their first pair; every pair is in exactly one.

    Args:
        hidden_size: of the model, where attention computes every token against its whole tree and then hides most of
            it (`TreeAttention.hides`). The way through the layers takes about 8 · hidden_size operations an id beside
            those of attention, and sharing costs attention from the n new tokens to all T of the tree and back; so a
            pair then joins when s · (8 · hidden_size + s) > 2 · n · T.
    """
    trees: list[tuple[_Trie, list[int]]] = []
    open_tree: dict[int, int] = {}
    for i, pair in enumerate(pairs):
        sides = (pair.prefix_ids + pair.better_ids, pair.prefix_ids + pair.worse_ids)
        index = open_tree.get(pair.dialogue) if pair.dialogue is not None else None
        if index is not None and not _worth_joining(trees[index][0], pair, sides, max_tokens, hidden_size):
            index = None
        if index is None:
            index = len(trees)
            trees.append((_Trie(), []))
            if pair.dialogue is not None:
                open_tree[pair.dialogue] = index
        trie, members = trees[index]
        trie.add(sides[0], (i, True))
        trie.add(sides[1], (i, False))
        members.append(i)
    return [trie.lay_out(members) for trie, members in trees]


def _worth_joining(
    trie: _Trie, pair: TokenPair, sides: tuple[array[int], array[int]], max_tokens: int, hidden_size: int | None
) -> bool:
    shared = max(trie.shared(side) for side in sides)
    new = len(pair.prefix_ids) + len(pair.better_ids) + len(pair.worse_ids) - shared
    total = trie.num_tokens
    if total + new > max_tokens:
        return False
    if hidden_size is not None:
        return shared * (8 * hidden_size + shared) > 2 * new * total
    return (8 if total + new <= max_tokens // 2 else 1) * shared > new


def chunks_by_tokens(trees: Sequence[Tree], max_tokens: int) -> Iterator[list[Tree]]:
    """The trees in groups of at most `max_tokens` tokens, largest trees first; a larger tree is a group of its own.

    Sorted, so that rows which are padded to each other differ little, and too little memory shows at once.
    """
    group: list[Tree] = []
    total = 0
    for tree in sorted(trees, key=lambda tree: -len(tree)):
        if group and total + len(tree) > max_tokens:
            yield group
            group, total = [], 0
        group.append(tree)
        total += len(tree)
    if group:
        yield group


def visibility(subtree_ends: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
    """…×M×K additive mask from …×T subtree ends: 0 where token i (rows) sees token j, else the lowest float.

    Additive, since eager attention adds a boolean mask as 0 and 1, which is silently wrong.

    Args:
        rows, columns: which tokens, M and K, by default all T.
    """
    # All of one type: promotion of the smaller costs more than the comparison.
    index = torch.arange(subtree_ends.shape[-1], device=subtree_ends.device, dtype=subtree_ends.dtype)
    seen = index if columns is None else index[columns]
    ends = subtree_ends if columns is None else subtree_ends[..., columns]
    index = index if rows is None else index[rows]
    hidden = (index[:, None] < seen[None, :]) | (index[:, None] >= ends[..., None, :])
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, torch.finfo(torch.float32).min)
