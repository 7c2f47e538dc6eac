"""Pairs from files: ranked answers for PMP, skills by template, and the reference set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.preference.comparison_set import read_manifest, stream_records
from orchestrator.config import PMPSection, SkillSection
from orchestrator.data.pair_set import LeftOut, pairs_of_file, write_orientation_pairs
from orchestrator.data.ranked_answers import answer_score, binary, ranked_pairs, write_pmp_pairs
from orchestrator.data.reference_set import choose
from orchestrator.data.skills import skill_records, write_skill_set
from orchestrator.errors import ConfigError, CycleError
from tests.models.preference_world import polite_comparisons, write_comparison_set


def lines(file: Path, *records: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def texts(record: dict[str, Any]) -> tuple[str, str]:
    return record["better"][-1]["content"], record["worse"][-1]["content"]


@pytest.mark.parametrize(
    ("upvotes", "accepted", "score"),
    # log2: 1 is 0, 2 is 1, 6 is 2.58, 100 is 6.64.
    [(0, False, 0), (1, False, 1), (5, False, 3), (5, True, 4), (99, False, 7), (-2, False, -1), (-2, True, 0)],
)
def test_an_answers_score_is_the_papers(upvotes: int, accepted: bool, score: int) -> None:
    assert answer_score(upvotes, accepted) == score


def test_answers_of_stack_exchange_are_ranked_by_score_and_equal_ones_are_no_pair(tmp_path: Path) -> None:
    # Scores 1, 4 (3 + accepted), -1 and 1 again: five pairs of the six, without the two ones.
    answers = [
        {"text": "one", "upvotes": 1},
        {"text": "best", "upvotes": 5, "accepted": True},
        {"text": "bad", "upvotes": -3},
        {"text": "one too", "upvotes": 1},
    ]
    file = lines(tmp_path / "stack.jsonl", {"question": {"title": "Why?", "body": "I ask."}, "answers": answers})
    found = list(ranked_pairs(file))
    assert sorted(texts(record) for record in found) == sorted(
        [("best", "one"), ("best", "one too"), ("best", "bad"), ("one", "bad"), ("one too", "bad")]
    )
    assert found[0]["prompt"] == [{"role": "user", "content": "Why?\n\nI ask."}]
    published = {"question": "Q", "answers": [{"text": "a", "pm_score": 0}, {"text": "b", "pm_score": 3}]}
    assert [texts(record) for record in ranked_pairs(lines(tmp_path / "p.jsonl", published))] == [("b", "a")]


def test_a_ranked_pair_becomes_the_papers_two_binary_ones() -> None:
    pair = {"id": "x", "prompt": [], "better": [{"role": "assistant", "content": "A"}],
            "worse": [{"role": "assistant", "content": "B"}]}  # fmt: skip
    good, bad = binary(pair)
    assert texts(good) == ("GOOD: A", "BAD: A")
    assert texts(bad) == ("BAD: B", "GOOD: B")
    assert good["id"] != bad["id"]


def test_real_ranked_trees_become_a_comparison_set_that_the_job_reads(data_dir: Path, tmp_path: Path) -> None:
    file = data_dir / "oasst_trees_en100" / "trees.jsonl.gz"
    num_ranked = len(list(ranked_pairs(file)))
    # 506 pairs by the data's README; those of two equal replies are refused.
    assert 490 <= num_ranked <= 506
    results = write_pmp_pairs([file], PMPSection(held_out_fraction=0.1), tmp_path)
    assert results.num_comparisons == 2 * num_ranked
    found = list(stream_records(tmp_path, read_manifest(tmp_path)))
    assert len(found) == 2 * num_ranked
    assert {record["source"] for record in found} == {"pmp:trees"}
    # A dialogue is on one side of the split.
    by_key: dict[str, set[str]] = {}
    for record in found:
        by_key.setdefault(record["split_key"], set()).add(record["split"])
    assert all(len(splits) == 1 for splits in by_key.values())
    assert 0 < results.num_held_out < results.num_train


def test_a_record_of_no_known_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stack\.jsonl, line 1 is no question with ranked answers"):
        list(ranked_pairs(lines(tmp_path / "stack.jsonl", {"question": "Q", "answers": [{"text": "a"}]})))
    with pytest.raises(ConfigError, match="no training pair"):
        write_pmp_pairs([lines(tmp_path / "none.jsonl")], PMPSection(), tmp_path / "out")


def test_summaries_are_asked_for_and_given_as_in_the_paper(tmp_path: Path) -> None:
    plain = {"text": "A long story. ", "better": "Story.", "worse": "Dunno."}
    published = {"info": {"post": "Another."}, "summaries": [{"text": "x"}, {"text": "y"}], "choice": 1}
    skill = SkillSection(
        name="summaries", file=str(lines(tmp_path / "s.jsonl", plain, published)), template="summary/1"
    )
    one, two = skill_records(skill)
    assert one["prompt"] == [{"role": "user", "content": "Please write a summary of this text:\n\nA long story."}]
    assert texts(one) == ("Sure, here it is:\n\nStory.", "Sure, here it is:\n\nDunno.")
    assert texts(two) == ("Sure, here it is:\n\ny", "Sure, here it is:\n\nx")
    assert (one["source"], one["question"]) == ("summaries", "helpful")
    broken = lines(tmp_path / "b.jsonl", {"text": "t", "better": "", "worse": "w"})
    with pytest.raises(ConfigError, match="line 1 is no pair of summaries"):
        list(skill_records(SkillSection(name="b", file=str(broken), template="summary/1")))


def test_a_skill_in_an_importable_format_is_taken_as_it_is(tmp_path: Path) -> None:
    hh = {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}
    skill = SkillSection(name="more", file=str(lines(tmp_path / "hh.jsonl", hh)), question="harmless")
    results = write_skill_set([skill], 0.0001, tmp_path / "out")
    assert results.by_source == {"more": 1}
    [record] = stream_records(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert (texts(record), record["question"], record["split"]) == (("Yes.", "No."), "harmless", "train")


def test_the_reference_set_is_the_same_held_out_pairs_whatever_their_order_and_ids(tmp_path: Path) -> None:
    records = polite_comparisons(5, 20)
    again = [record | {"id": f"{number:04}"} for number, record in enumerate(reversed(records))]
    chosen = []
    for name, some in (("one", records), ("two", again)):
        (tmp_path / f"{name} out").mkdir()
        assert choose(write_comparison_set(tmp_path / name, some), 8, tmp_path / f"{name} out") == {"num_pairs": 8}
        found = (tmp_path / f"{name} out" / "reference.jsonl").read_text().splitlines()
        chosen.append([(json.loads(line)["split"], *texts(json.loads(line))) for line in found])
    assert chosen[0] == chosen[1]
    assert {split for split, *_ in chosen[0]} == {"held_out"}
    with pytest.raises(CycleError, match=r"reference\.file.*Nothing is held out: raise comparisons\.held_out_fraction"):
        choose(write_comparison_set(tmp_path / "none", polite_comparisons(3, 0)), 8, tmp_path)
    one = [record | {"split_key": "aa"} for record in polite_comparisons(3, 0)]
    with pytest.raises(CycleError, match="begin with one and the same message"):
        choose(write_comparison_set(tmp_path / "one dialogue", one), 8, tmp_path)


def test_the_pairs_of_a_file_are_named_by_line_and_what_gives_none_says_why(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "mixed.jsonl",
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away.", "question": "harmless"},
        {"prompt": "Hi", "chosen": "same", "rejected": "same"},
        # Another format than the first line's, without a choice.
        {"model_a": "x", "model_b": "y", "winner": "tie",
         "conversation_a": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
         "conversation_b": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]},
        {"prompt": "Hi"},
    )  # fmt: skip
    found = dict(pairs_of_file(file, "mine", "helpful"))
    pair = found[1]
    assert not isinstance(pair, LeftOut)
    assert (pair["id"], pair["source"], pair["question"]) == ("mine:1", "mine", "harmless")
    assert texts(pair) == ("Hello.", "Go away.")
    reasons = [one.reason for line, one in found.items() if line > 1 and isinstance(one, LeftOut)]
    assert reasons == ["identical_replies", "none_tie", "missing_field"]
    undecided = dict(pairs_of_file(file, "mine", "helpful", undecided=True))[3]
    assert not isinstance(undecided, LeftOut)
    assert (texts(undecided), undecided["question"]) == (("B", "A"), "helpful")


def test_orientation_pairs_from_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "other.jsonl", {"text": "once upon a time"})
    with pytest.raises(ConfigError, match=r"line 1: .* fits no known format.*The configuration names it"):
        write_orientation_pairs(file, tmp_path)
