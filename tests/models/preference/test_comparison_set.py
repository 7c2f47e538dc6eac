"""Reading a comparison set: digests, records, tokens, and what is left out."""

import hashlib
import json
from pathlib import Path

import pytest

from models.backbone.batches import chunks_by_length
from models.preference.comparison_set import ComparisonSetError, load_token_pairs, read_manifest, token_pair
from models.preference.order import dialogue_order, epoch_order, shuffle_labels
from models.preference.pairs import PairFile, TokenPair, TokenPairs

END = 0


class LetterChat:
    """One id per letter and an end-of-context id: ids that can be read off by eye."""

    def score_ids(self, messages):
        return [ord(letter) for message in messages for letter in message["content"]] + [END]


def record(number: int, prompt: str, better: str, worse: str, split: str = "train") -> dict:
    return {
        "id": f"c{number}",
        "split": split,
        "source": "test",
        "question": "helpful",
        "prompt": [{"role": "user", "content": prompt}],
        "better": [{"role": "assistant", "content": better}],
        "worse": [{"role": "assistant", "content": worse}],
    }


def write_set(directory: Path, *shards: list[dict]) -> Path:
    (directory / "shards").mkdir(parents=True)
    entries = []
    for number, records in enumerate(shards):
        data = "".join(json.dumps(r) + "\n" for r in records).encode()
        name = f"shards/{number:05}.jsonl"
        (directory / name).write_bytes(data)
        entries.append({"file": name, "sha256": hashlib.sha256(data).hexdigest(), "records": len(records)})
    (directory / "manifest.json").write_text(json.dumps({"format": 1, "shards": entries}))
    return directory


def test_records_of_all_shards_in_manifest_order(tmp_path):
    directory = write_set(
        tmp_path / "set",
        [record(1, "ab", "xy", "z"), record(2, "ab", "x", "y", "held_out")],
        [record(3, "c", "d", "e")],
    )
    splits = load_token_pairs(directory, LetterChat(), max_tokens=100)
    assert [pair.id for pair in splits["train"].pairs] == ["c1", "c3"]
    assert [pair.id for pair in splits["held_out"].pairs] == ["c2"]


def test_shared_beginning_is_stored_once_and_may_reach_into_the_replies():
    pair = token_pair(record(1, "ab", "cde", "cf"), LetterChat())
    assert [chr(i) for i in pair.prefix_ids] == ["a", "b", "c"]
    assert list(pair.better_ids) == [ord("d"), ord("e"), END]
    assert list(pair.worse_ids) == [ord("f"), END]
    assert (pair.better_tokens, pair.worse_tokens, pair.length_difference) == (6, 5, 1)
    assert pair.rater is None
    of_a_rater = token_pair(record(1, "ab", "cde", "cf") | {"rater": "7"}, LetterChat())
    assert (of_a_rater.rater, of_a_rater.swapped().rater) == ("7", "7")


def test_end_of_context_id_is_never_shared():
    same = token_pair(record(1, "a", "b", "b"), LetterChat())
    assert (list(same.better_ids), list(same.worse_ids)) == ([END], [END])
    beginning = token_pair(record(1, "a", "b", "bc"), LetterChat())
    assert (list(beginning.better_ids), list(beginning.worse_ids)) == ([END], [ord("c"), END])


def test_pairs_too_long_are_counted_not_cut(tmp_path):
    # "ab" + "xyz" + end = 6 tokens, "ab" + "z" + end = 4.
    directory = write_set(tmp_path / "set", [record(1, "ab", "xyz", "z"), record(2, "ab", "x", "z")])
    splits = load_token_pairs(directory, LetterChat(), max_tokens=5)
    assert [pair.id for pair in splits["train"].pairs] == ["c2"]
    assert splits["train"].num_too_long == 1
    assert len(load_token_pairs(directory, LetterChat(), max_tokens=6)["train"].pairs) == 2


def test_tampered_shard_is_refused_before_any_record_is_used(tmp_path):
    directory = write_set(tmp_path / "set", [record(1, "a", "b", "c")])
    shard = directory / "shards" / "00000.jsonl"
    shard.write_text(shard.read_text().replace('"b"', '"d"'))
    with pytest.raises(ComparisonSetError, match=r"00000\.jsonl has SHA-256 .* the manifest says"):
        read_manifest(directory)


def test_missing_shard_and_missing_manifest_are_named(tmp_path):
    directory = write_set(tmp_path / "set", [record(1, "a", "b", "c")])
    (directory / "shards" / "00000.jsonl").unlink()
    with pytest.raises(ComparisonSetError, match="is missing"):
        read_manifest(directory)
    with pytest.raises(ComparisonSetError, match=r"no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "line 1: split 'test', expected train or held_out"),
        ({"better": []}, "line 1: better must end with the assistant message"),
        ({"worse": [{"role": "user", "content": "x"}]}, "line 1: worse must end with the assistant message"),
    ],
)
def test_record_of_the_wrong_shape_is_named_by_line(tmp_path, change, message):
    directory = write_set(tmp_path / "set", [record(1, "a", "b", "c") | change])
    with pytest.raises(ComparisonSetError, match=message):
        load_token_pairs(directory, LetterChat(), max_tokens=100)


def test_epoch_order_visits_everything_once_and_depends_on_seed_and_epoch_only():
    order = epoch_order(100, seed=3, epoch=1)
    assert sorted(order) == list(range(100))
    assert order == epoch_order(100, seed=3, epoch=1)
    assert order != epoch_order(100, seed=3, epoch=0)
    assert order != epoch_order(100, seed=4, epoch=0)


def test_shuffling_exchanges_half_and_leaves_no_taste_for_length():
    # Differences 1..5 for the better side, twenty pairs each: 100 longer winners of 100.
    pairs = [token_pair(record(i, "p", "b" * (2 + i % 5), "w"), LetterChat()) for i in range(100)]
    shuffled = shuffle_labels(pairs, seed=0)
    exchanged = [before is not after for before, after in zip(pairs, shuffled, strict=True)]
    assert sum(exchanged) == 50
    # Every block holds two equal differences, one of them turned round: the sum is exactly 0.
    assert sum(pair.length_difference for pair in shuffled) == 0
    assert shuffle_labels(pairs[::-1], seed=0)[::-1] == shuffled
    assert shuffle_labels(pairs, seed=1) != shuffled


def test_shuffling_an_odd_number_leaves_the_last_to_its_own_coin():
    pairs = [token_pair(record(0, "p", "b", "w"), LetterChat())]
    outcomes = {shuffle_labels(pairs, seed)[0] is pairs[0] for seed in range(20)}
    assert outcomes == {True, False}


def test_chunks_by_length_by_hand():
    # Longest first: 9 alone (2·9 > 12), then 5 and 4 (2·5 ≤ 12 < 3·5), then 3, 2 and 1 (3·3 ≤ 12).
    assert list(chunks_by_length([3, 9, 5, 1, 4, 2], max_tokens=12)) == [[1], [2, 4], [0, 5, 3]]
    assert list(chunks_by_length([20], max_tokens=12)) == [[0]]
    assert list(chunks_by_length([], max_tokens=12)) == []


def test_dialogue_order_keeps_dialogues_together_in_pieces():
    # Dialogue 7 has ten comparisons, so two pieces (of 8 and 2); 9 has two; the last pair names no dialogue.
    dialogues = [7, 7, 9, 7, 7, 9, 7, 7, 7, 7, 7, 7, None]
    order = dialogue_order(dialogues, seed=3, epoch=0)
    assert sorted(order) == list(range(13))
    pieces = [[0, 1, 3, 4, 6, 7, 8, 9], [2, 5], [10, 11], [12]]
    assert order == [i for piece in epoch_order(4, 3, 0) for i in pieces[piece]]
    assert order != dialogue_order(dialogues, seed=3, epoch=1)


def test_pairs_on_disk_are_the_pairs_in_memory(tmp_path):
    records = [record(i, f"prompt {i}", f"better {i}", f"worse {i} é") for i in range(5)]
    records[3] |= {"rater": "r", "split_key": "ab", "turn": 2}
    directory = write_set(tmp_path / "set", records[:3], [*records[3:], record(9, "a", "b", "c", "held_out")])
    in_memory = load_token_pairs(directory, LetterChat(), 1000)
    on_disk = {split: TokenPairs(PairFile(tmp_path, TokenPair)) for split in in_memory}
    load_token_pairs(directory, LetterChat(), 1000, splits=on_disk)
    for split, pairs in in_memory.items():
        assert list(on_disk[split].pairs) == pairs.pairs
    train = on_disk["train"].pairs
    assert isinstance(train, PairFile)
    assert (train[-1], train[1:3], len(train)) == (train[4], [train[1], train[2]], 5)
    train.append(train[0])  # after reading
    assert train[5] == train[0] != train[1]
    with pytest.raises(IndexError):
        train[6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]  # the file has no name
