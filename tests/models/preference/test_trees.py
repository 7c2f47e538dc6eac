"""Trees of comparisons against the plain computation of separate sequences: same scores, same gradients."""

from __future__ import annotations

from array import array

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from models.backbone.precision import Filling, exactly, thirty_seconds
from models.preference import tree_attention, tree_states
from models.preference.comparison_set import dialogue_number
from models.preference.loss import preference_loss
from models.preference.model import can_pack, end_scores, pair_scores, tree_scores
from models.preference.tree_states import _RMSNorm, _Rotation
from models.preference.trees import Span, Tree, chunks_by_tokens, pair_trees, visibility
from tests.models.preference.tree_world import (
    BATCH,
    CONFIGS,
    CPU,
    GRADIENT_TOLERANCE,
    HIDDEN,
    NO_LIMIT,
    PAD,
    SCORE_TOLERANCE,
    SINGLES,
    SMALL,
    dialogue,
    pair,
    scores_by_tree,
    sides,
    small_model,
)


@pytest.mark.parametrize("way", ["line", "filled up", "rows"])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_gradients_equal_those_of_separate_sequences(name, way, monkeypatch):
    if way != "line":
        monkeypatch.setattr(tree_states, "filling", lambda *_: Filling(exactly, thirty_seconds))
    if way == "rows":  # as on a GPU
        monkeypatch.setattr(tree_attention, "CALLS_ARE_CHEAP_ON", ())
    model = small_model(name)
    assert can_pack(model.config)
    trees = pair_trees(BATCH, NO_LIMIT)
    assert len(trees) < len(BATCH)
    assert any(len(tree.spans()) > 2 for tree in trees)
    gradients, scores = [], []
    for compute in (lambda: pair_scores(model, BATCH, PAD, CPU), lambda: scores_by_tree(model, BATCH)):
        model.zero_grad()
        better, worse = compute()
        preference_loss(better, worse).backward()
        scores.append((better.detach(), worse.detach()))
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    for plain, packed in zip(*scores, strict=True):
        assert torch.allclose(plain, packed, rtol=0, atol=SCORE_TOLERANCE)
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float((gradients[0][key] - gradients[1][key]).abs().max()) for key in gradients[0])
    assert largest < GRADIENT_TOLERANCE
    # The tolerance means something: the gradients themselves are thousands of times larger.
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 1000 * GRADIENT_TOLERANCE


def test_lines_have_few_lengths_in_half_precision():
    model = small_model("llama")
    lengths: list[set[int]] = [set(), set()]  # by layer; behind the last one's attention there are the scores alone
    for layer, seen in zip(model.base_model.layers, lengths, strict=True):
        layer.mlp.register_forward_hook(lambda _module, args, _output, seen=seen: seen.add(len(args[0])))
    for count in range(1, len(BATCH) + 1):
        trees = pair_trees(BATCH[:count], NO_LIMIT)
        with torch.autocast("cpu", torch.bfloat16):
            better, worse = tree_scores(model, trees, CPU)
        assert len(better) == len(worse) == count
    # 13 to 179 tokens and 2 to 22 scores.
    assert lengths == [{32, 64, 96, 128, 160, 192}, {32}]


def test_a_side_cannot_see_the_other():
    model = small_model("llama")
    _, worse = scores_by_tree(model, SINGLES)
    changed = [pair(list(p.prefix_ids), [3] * (len(p.better_ids) - 1) + [2], list(p.worse_ids)) for p in SINGLES]
    _, worse_beside_another = scores_by_tree(model, changed)
    assert torch.allclose(worse, worse_beside_another, rtol=0, atol=SCORE_TOLERANCE)


def test_a_pair_by_hand():
    # [5 | 8 7 2 | 9 2]: the longer side first; positions 0 | 1 2 3 | 1 2; scores read at 5 (better) and 3 (worse).
    (tree,) = pair_trees([pair([5], [9, 2], [8, 7, 2])], NO_LIMIT)
    assert tree.ids.tolist() == [5, 8, 7, 2, 9, 2]
    assert tree.positions.tolist() == [0, 1, 2, 3, 1, 2]
    assert tree.subtree_ends.tolist() == [6, 4, 4, 4, 6, 6]
    assert tree.reads == [5, 3]
    assert (visibility(torch.tensor(tree.subtree_ends.tolist())) == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    assert tree.spans() == [Span(0, 4, 0), Span(4, 6, 1)]


def test_a_dialogue_by_hand():
    # Turn 1: prompt 5, picked 6 7, other 8. Turn 2: prompt 9, picked 10 11 12, other 13. End of context: 2.
    first = sides([5, 6, 7, 2], [5, 8, 2], dialogue=1)
    second = sides([5, 6, 7, 9, 13, 2], [5, 6, 7, 9, 10, 11, 12, 2], dialogue=1)
    (tree,) = pair_trees([first, second], NO_LIMIT)
    # Path 5 6 7 9 10 11 12 2, then the branches from the deepest fork up: 13 2 after 9; 2 after 7; 8 2 after 5.
    assert tree.ids.tolist() == [5, 6, 7, 9, 10, 11, 12, 2, 13, 2, 2, 8, 2]
    assert tree.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 3, 1, 2]
    assert tree.subtree_ends.tolist() == [13, 11, 11, 10, 8, 8, 8, 8, 10, 10, 11, 13, 13]
    # 13 tokens where two sequences a comparison have 4 + 3 + 6 + 8 = 21.
    assert tree.reads == [10, 9, 12, 7]  # better of turn 1 and 2, worse of turn 1 and 2
    # The branches are short: one span, which sees what the deepest of them sees.
    assert tree.spans() == [Span(0, 8, 0), Span(8, 13, 4)]


@pytest.mark.parametrize("seed", range(5))
def test_a_token_sees_what_stood_before_it_in_its_own_sequence(seed):
    pairs = [*dialogue(1, turns=5, seed=seed), *dialogue(2, turns=2, seed=seed)]
    for tree in pair_trees(pairs, NO_LIMIT):
        sees = visibility(torch.tensor(tree.subtree_ends.tolist())) == 0
        for member, better, worse in zip(tree.pairs, tree.better_ends, tree.worse_ends, strict=True):
            for end, side in ((better, pairs[member].better_ids), (worse, pairs[member].worse_ids)):
                path = sees[end].nonzero()[:, 0].tolist()
                assert [tree.ids[i] for i in path] == [*pairs[member].prefix_ids, *side]
                assert [tree.positions[i] for i in path] == list(range(len(path)))
        covered = [i for span in tree.spans() for i in range(span.start, span.end)]
        assert covered == list(range(len(tree)))
        for span in tree.spans():
            hidden_outside = sees[span.start : span.end].clone()
            hidden_outside[:, : span.seen] = False
            hidden_outside[:, span.start : span.end] = False
            assert not hidden_outside.any()


def test_pairs_of_a_dialogue_join_where_sharing_is_cheaper():
    # The second turn shares 3 ids and brings 3.
    first, second = sides([5, 6, 7, 2], [5, 8, 2], 1), sides([5, 6, 7, 2], [5, 6, 9, 2], 1)
    assert len(pair_trees([first, second], NO_LIMIT)) == 1
    # The same with nothing known of the dialogue, with another dialogue.
    assert len(pair_trees([first, sides([5, 6, 7, 2], [5, 6, 9, 2])], NO_LIMIT)) == 2
    assert len(pair_trees([first, sides([5, 6, 7, 2], [5, 6, 9, 2], 2)], NO_LIMIT)) == 2
    # 6 + 2 new tokens: within half of the limit; beyond it with 4 shared against 2 new; beyond the limit.
    assert [len(pair_trees([first, second], max_tokens=n)) for n in (16, 15, 8, 7)] == [1, 1, 1, 2]
    # The first pair's 9 ids, 6 of them shared by a second that brings n: within half of the limit where 8 · 6 > n, in
    # a larger tree where 6 > n.
    first = sides([5] * 6 + [7, 2], [5] * 6 + [2], 1)
    for limit, new, joined in ((NO_LIMIT, 47, True), (NO_LIMIT, 48, False), (20, 5, True), (20, 6, False)):
        second = sides([5] * 6 + [8] * (new - 3) + [2], [5] * 6 + [9, 2], 1)
        found = [len(tree) for tree in pair_trees([first, second], limit)]
        assert found == ([9 + new] if joined else [9, 6 + new])


def test_where_attention_hides_pairs_join_only_where_sharing_is_cheaper():
    # The second turn shares 3 ids of its 3 + 1 + 2: 3 · (8 · 32 + 3) = 777 against 2 · 3 new · 6 in the tree = 36.
    first, second = sides([5, 6, 7, 2], [5, 8, 2], 1), sides([5, 6, 7, 2], [5, 6, 9, 2], 1)
    assert len(pair_trees([first, second], NO_LIMIT, hidden_size=HIDDEN)) == 1
    # One shared id and two long replies: 1 · (8 · 32 + 1) = 257 against 2 · 42 new · 43 = 3,612.
    long = [sides([5, *[n] * 20, 2], [5, *[n + 1] * 20, 2], 1) for n in (6, 8)]
    assert [len(tree) for tree in pair_trees(long, NO_LIMIT, hidden_size=HIDDEN)] == [43, 43]


def test_chunks_by_tokens_by_hand():
    def tree(size: int) -> Tree:
        ids = array("i", range(size))
        return Tree([0], ids, ids, ids, [0], [0])

    chunks = chunks_by_tokens([tree(size) for size in (3, 9, 5, 1, 20, 4)], max_tokens=12)
    assert [[len(member) for member in chunk] for chunk in chunks] == [[20], [9], [5, 4, 3], [1]]
    assert list(chunks_by_tokens([], max_tokens=12)) == []


def test_swapping_the_sides_negates_the_gap():
    model = small_model("llama")
    better, worse = scores_by_tree(model, BATCH)
    swapped_better, swapped_worse = scores_by_tree(model, [p.swapped() for p in BATCH])
    assert torch.allclose(better - worse, swapped_worse - swapped_better, atol=SCORE_TOLERANCE)


def test_hand_worked_gradients_against_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-6), (x, weight))
    angles = torch.randn(5, 1, 4, dtype=torch.float64)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
    assert torch.autograd.gradcheck(lambda x: _Rotation.apply(x, cos, sin), (x,))


def test_padding_and_order_of_a_batch_change_no_score():
    model = small_model("llama")
    sequences = [[5, 6, 2], [7, 8, 9, 10, 11, 2], [12, 2]]
    together = end_scores(model, sequences, PAD, CPU)
    alone = torch.cat([end_scores(model, [ids], PAD, CPU) for ids in sequences])
    assert torch.allclose(together, alone, atol=SCORE_TOLERANCE)
    backwards = end_scores(model, sequences[::-1], PAD, CPU)
    assert torch.allclose(together, backwards.flip(0), atol=SCORE_TOLERANCE)


def test_trees_are_off_where_they_are_not_proven():
    assert not can_pack(MistralConfig(**SMALL))
    assert not can_pack(Qwen2Config(**SMALL, use_sliding_window=True))
    assert not can_pack(GPTNeoXConfig(**SMALL, hidden_dropout=0.1))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not can_pack(LlamaConfig(**SMALL, rope_parameters=dynamic))


def test_dialogues_are_told_apart_by_their_split_key():
    assert dialogue_number("ab") == dialogue_number("ab") != dialogue_number("ac")
    assert dialogue_number(None) is dialogue_number("") is None
