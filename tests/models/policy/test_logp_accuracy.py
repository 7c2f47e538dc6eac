"""Mean log-p accuracy: which pairs are taken, and the number against a computation by hand."""

import random

import pytest
import torch

from models.chat.format import ChatFormat
from models.chat.refusals import Refusals
from models.model_folders.loading import load_causal_lm
from models.policy.logp_accuracy import accuracy_by_question, held_out_pairs, mean_logp_gaps
from models.policy.model import Policy
from tests.models.preference_world import comparison, polite_comparisons, write_comparison_set

FORWARD_TOLERANCE = 1e-4


@pytest.fixture
def records():
    generator = random.Random(3)
    harmless = [comparison(100 + i, "held_out", generator, question="harmless") for i in range(3)]
    return [*polite_comparisons(num_train=5, num_held_out=8), *harmless]


def test_pairs_are_held_out_ones_of_each_question_whatever_the_order(policy_dir, tmp_path, records):
    chat = ChatFormat.load(policy_dir)
    one = held_out_pairs(write_comparison_set(tmp_path / "one", records), chat, 4, 512, Refusals())
    other = held_out_pairs(write_comparison_set(tmp_path / "other", records[::-1]), chat, 4, 512, Refusals())
    assert [pair.scored.id for pair in one] == [pair.scored.id for pair in other]
    assert [pair.question for pair in one] == ["helpful"] * 4 + ["harmless"] * 3
    tied = [record | {"tie": "tie"} if record["id"] == one[0].scored.id else record for record in records]
    others = held_out_pairs(write_comparison_set(tmp_path / "tied", tied), chat, 4, 512, Refusals())
    assert one[0].scored.id not in {pair.scored.id for pair in others}
    train = {record["id"] for record in records if record["split"] == "train"}
    assert train.isdisjoint(pair.scored.id for pair in one)


def test_pairs_that_do_not_fit_are_passed_over(policy_dir, tmp_path, records):
    chat = ChatFormat.load(policy_dir)
    folder = write_comparison_set(tmp_path / "set", records)
    all_pairs = held_out_pairs(folder, chat, 100, 512, Refusals())

    def longest(pair):
        return max(len(pair.better_prompt) + len(pair.better), len(pair.worse_prompt) + len(pair.worse))

    limit = sorted(map(longest, all_pairs))[5]
    shorter = held_out_pairs(folder, chat, 100, limit, Refusals())
    assert [p.scored.id for p in shorter] == [p.scored.id for p in all_pairs if longest(p) < limit]
    assert 0 < len(shorter) < len(all_pairs)


def test_an_edited_reply_keeps_its_own_history(policy_dir, tmp_path, records):
    chat = ChatFormat.load(policy_dir)
    record = records[-1] | {"question": "helpful", "prompt": []}
    record["better"] = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "seven"}]
    record["worse"] = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "seven"}]
    (pair,) = held_out_pairs(write_comparison_set(tmp_path / "set", [record]), chat, 4, 512, Refusals())
    assert pair.better_prompt == chat.encode([{"role": "user", "content": "Hi."}], reply=True)
    assert pair.worse_prompt == chat.encode([{"role": "user", "content": "Hello."}], reply=True)
    assert pair.better == pair.worse == chat.encode_reply("seven")


def test_gaps_are_means_over_reply_tokens_and_change_sign_with_the_sides(policy_dir, tmp_path, records):
    chat, model = ChatFormat.load(policy_dir), load_causal_lm(policy_dir)
    pairs = held_out_pairs(write_comparison_set(tmp_path / "set", records), chat, 3, 512, Refusals())
    gaps = mean_logp_gaps(Policy(model), pairs, chat.pad_id, 64)

    def mean_logp(prompt, reply):
        with torch.no_grad():
            logps = model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
        return sum(float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(reply)) / len(reply)

    expected = [mean_logp(p.better_prompt, p.better) - mean_logp(p.worse_prompt, p.worse) for p in pairs]
    assert gaps == pytest.approx(expected, abs=FORWARD_TOLERANCE)
    assert min(map(abs, gaps)) > FORWARD_TOLERANCE


def test_accuracy_is_per_question_and_ties_count_half(policy_dir, tmp_path, records):
    chat = ChatFormat.load(policy_dir)
    pairs = held_out_pairs(write_comparison_set(tmp_path / "set", records), chat, 3, 512, Refusals())
    found = accuracy_by_question(pairs, [1.0, 0.0, -1.0, 2.0, 3.0, -0.1])
    assert {kind: (measured.accuracy, measured.n) for kind, measured in found.items()} == {
        "helpful": (0.5, 3),
        "harmless": (2 / 3, 3),
    }
    assert list(accuracy_by_question(pairs[:3], [1.0, 1.0, 1.0])) == ["helpful"]


def test_accuracy_counts_dialogues_and_not_only_comparisons(policy_dir, tmp_path, records):
    one = [record | {"split_key": "ab"} for record in records]
    pairs = held_out_pairs(write_comparison_set(tmp_path / "set", one), ChatFormat.load(policy_dir), 3, 512, Refusals())
    found = accuracy_by_question(pairs, [1.0, -1.0, 1.0] * 2)["helpful"]
    assert (found.n, found.dialogues, found.ci) == (3, 1, (0.0, 1.0))
