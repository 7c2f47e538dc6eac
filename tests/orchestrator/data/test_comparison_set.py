"""Comparison sets and prompt sets: what a record says, what is left out and why, what the next week takes over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import tables as t
from db.split import is_held_out, split_key
from orchestrator.config import ComparisonsSection
from orchestrator.data import comparison_records, comparison_set, freeze, named_files, pair_set
from orchestrator.data.copy_binary import BinaryRows
from orchestrator.errors import ConfigError, CycleError
from orchestrator.people.withdrawal import withdraw
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore
from tests.db.rows import add_artifact, add_comparison, add_dialogue, add_pair, add_rater
from tests.folders import contents
from tests.orchestrator.data.set_files import HALF, build, excluded, frozen, records

# By the first 8 hex digits of their keys, at one half: checked in test_the_openings_used_here_fall_where_it_says.
TRAIN, HELD_OUT = "Write a poem.", "Name a river."


def test_the_openings_used_here_fall_where_it_says() -> None:
    assert split_key(TRAIN)[0] in "89abcdef"
    assert split_key(HELD_OUT)[0] in "01234567"


def test_a_record_says_everything_about_a_comparison(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        rater = add_rater(session)
        snapshot = add_artifact(session)
        comparison = add_comparison(
            session,
            'Name a river.\n"\\ \u2028 é',
            rater=rater,
            a="the Po\t",
            b="no",
            side="b",
            strength=3,
            pair_fields={"b_snapshot_id": snapshot.id},
        )
        key = split_key('Name a river.\n"\\ \u2028 é')
        expected = {
            "id": str(comparison.id),
            "split": "held_out" if is_held_out(key, 0.5) else "train",
            "split_key": key,
            "source": "feedback",
            "tranche": "online",
            "question": "helpful",
            "strength": 3,
            "rater": str(rater.id),
            "turn": 1,
            "prompt": [{"role": "user", "content": 'Name a river.\n"\\ \u2028 é'}],
            "better": [{"role": "assistant", "content": "no"}],
            "worse": [{"role": "assistant", "content": "the Po\t"}],
            "better_snapshot": snapshot.digest,
            "worse_snapshot": None,
        }
    results = build(engine, tmp_path / "set", frozen(engine))
    assert records(tmp_path / "set") == [expected]
    assert results.num_comparisons == results.num_fresh == 1
    assert results.excluded == {}


@pytest.mark.parametrize(
    ("question", "side", "better", "trained_as"),
    [
        ("helpful", "a", "reply a", "helpful"),
        ("helpful", "b", "reply b", "helpful"),
        ("harmless", "a", "reply a", "harmless"),
        ("more_harmful", "a", "reply b", "harmless"),  # a is more harmful, so b is better
        ("more_harmful", "b", "reply a", "harmless"),
    ],
)
def test_more_harmful_is_turned_round_and_nothing_else(
    engine: Engine, tmp_path: Path, question: str, side: str, better: str, trained_as: str
) -> None:
    with Session(engine) as session, session.begin():
        add_comparison(session, side=side, pair_fields={"question": question})
    build(engine, tmp_path / "set", frozen(engine))
    (record,) = records(tmp_path / "set")
    worse = {"reply a": "reply b", "reply b": "reply a"}[better]
    assert (record["question"], record["better"][0]["content"], record["worse"][0]["content"]) == (
        trained_as, better, worse,
    )  # fmt: skip
    by_hand = comparison_records.oriented(
        id="x",
        source="s",
        question=question,
        side=side,
        prompt=[],
        a=[{"content": "reply a"}],
        b=[{"content": "reply b"}],
    )
    assert (by_hand["question"], by_hand["better"], by_hand["worse"]) == (
        trained_as, [{"content": better}], [{"content": worse}],
    )  # fmt: skip


def test_a_later_turn_carries_the_path_to_it_and_not_the_other_branch(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        dialogue, (_, reply, third) = add_dialogue(session, "one", "two", "three", system="Be brief.")
        other = t.Message(dialogue_id=dialogue.id, parent_id=reply.id, role="user", content="another branch")
        session.add(other)
        session.flush()
        add_comparison(session, pair=add_pair(session, third)[0])
    build(engine, tmp_path / "set", frozen(engine))
    (record,) = records(tmp_path / "set")
    assert record["turn"] == 2
    assert record["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]


def test_sides_with_a_history_of_their_own_keep_it(engine: Engine, tmp_path: Path) -> None:
    history = [{"role": "assistant", "content": "first a"}, {"role": "user", "content": "and now?"}]
    with Session(engine) as session, session.begin():
        _, messages = add_dialogue(session, "one")
        pair, _, _ = add_pair(session, messages[0], a_history=history)
        add_comparison(session, pair=pair)
    build(engine, tmp_path / "set", frozen(engine))
    (record,) = records(tmp_path / "set")
    assert record["better"] == [*history, {"role": "assistant", "content": "reply a"}]
    assert record["worse"] == [{"role": "assistant", "content": "reply b"}]
    assert record["turn"] == 2  # the prompt's, and the one in the history


def test_what_is_left_out_is_counted_with_its_reason(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        kept = [
            add_comparison(session, "1"),
            add_comparison(session, "2", strength=2),
            add_comparison(session, "3", strength=None),  # unknown passes the threshold
        ]
        out = {
            add_comparison(session, "4", pair_fields={"purpose": "evaluation"}): "evaluation",
            add_comparison(session, "5", side="none", reason="cant_tell"): "none_cant_tell",
            add_comparison(session, "6", side="none", reason="tie"): "none_tie",
            add_comparison(session, "7", strength=1): "weak",
            add_comparison(session, "8", label_kind="model"): "model_label",
            add_comparison(session, "9", dialogue={"source": "elsewhere"}): "source",
            add_comparison(session, "10", a="same", b="same"): "identical_replies",
        }
        ids, reasons = [str(c.id) for c in kept], {str(c.id): reason for c, reason in out.items()}
    section = ComparisonsSection(held_out_fraction=0.5, min_strength=2, sources=["feedback"])
    results = build(engine, tmp_path / "set", frozen(engine), section=section)
    assert [record["id"] for record in records(tmp_path / "set")] == ids
    assert excluded(tmp_path / "set") == reasons
    assert results.excluded == dict.fromkeys(sorted(reasons.values()), 1)
    assert (results.num_comparisons, results.num_excluded) == (3, 7)


def test_ties_enter_where_they_are_asked_for_and_change_nothing_else(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        decided = add_comparison(session, "One?", strength=2)
        tie = add_comparison(session, "Two?", side="none", reason="tie")
        add_comparison(session, "Three?", side="none", reason="cant_tell")
        ids = (str(decided.id), str(tie.id))
    freeze_id = frozen(engine)
    build(engine, tmp_path / "without", freeze_id)
    manifest = json.loads((tmp_path / "without" / "manifest.json").read_text())
    # As it was written before there was the setting.
    assert "ties" not in manifest["settings"]
    assert manifest["excluded"] == {"none_cant_tell": 1, "none_tie": 1}

    section = ComparisonsSection(held_out_fraction=0.5, ties=["tie"])
    results = build(engine, tmp_path / "with", freeze_id, section=section)
    assert results.excluded == {"none_cant_tell": 1}
    one, two = records(tmp_path / "with")
    assert [one] == records(tmp_path / "without")
    assert (one["id"], two["id"]) == ids
    assert (two["tie"], two["strength"]) == ("tie", None)
    assert {two["better"][0]["content"], two["worse"][0]["content"]} == {"reply a", "reply b"}


def test_the_split_goes_by_dialogue_and_agrees_with_python(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        for number in range(60):
            add_comparison(session, f"Question {number}?")
            add_comparison(session, f"question  {number}")  # the same opening, written otherwise
    results = build(engine, tmp_path / "set", frozen(engine), section=ComparisonsSection(held_out_fraction=0.3))
    found = records(tmp_path / "set")
    assert all((record["split"] == "held_out") == is_held_out(record["split_key"], 0.3) for record in found)
    assert len({record["split_key"] for record in found}) == 60
    assert (results.num_train, results.num_held_out) == (
        sum(record["split"] == "train" for record in found),
        sum(record["split"] == "held_out" for record in found),
    )
    assert 0 < results.num_held_out < results.num_train


def test_a_pinned_dialogue_is_held_out_and_its_twin_in_training_is_removed(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        twin = add_comparison(session, TRAIN + "!")
        pinned = add_comparison(session, TRAIN, dialogue={"pinned_split": "held_out"})
        other = add_comparison(session, "Write two poems.")
        ids = [str(pinned.id), str(other.id)]
        twin_id = str(twin.id)
    results = build(engine, tmp_path / "set", frozen(engine), section=ComparisonsSection(held_out_fraction=1e-9))
    assert [(record["id"], record["split"]) for record in records(tmp_path / "set")] == [
        (ids[0], "held_out"),
        (ids[1], "train"),
    ]
    assert excluded(tmp_path / "set") == {twin_id: "held_out_elsewhere"}
    assert results.excluded == {"held_out_elsewhere": 1}


def test_the_next_week_takes_over_the_shards_and_equals_a_set_built_anew(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_set, "SHARD_COMPARISONS", 4)
    with Session(engine) as session, session.begin():
        for number in range(10):
            add_comparison(session, f"week one {number}")
    first = build(engine, tmp_path / "one", frozen(engine))
    with Session(engine) as session, session.begin():
        for number in range(3):
            add_comparison(session, f"week two {number}")
    second = frozen(engine)
    results = build(engine, tmp_path / "two", second, tmp_path / "one")
    build(engine, tmp_path / "anew", second)
    assert contents(tmp_path / "two") == contents(tmp_path / "anew")
    shared = sorted(path.name for path in (tmp_path / "one" / "shards").iterdir())
    assert len(shared) == 3  # 4 + 4 + 2
    for name in shared:
        assert (tmp_path / "one" / "shards" / name).samefile(tmp_path / "two" / "shards" / name)
    assert (first.num_comparisons, results.num_comparisons, results.num_fresh) == (10, 13, 3)
    assert [record["id"] for record in records(tmp_path / "two")[:10]] == [
        record["id"] for record in records(tmp_path / "one")
    ]


def test_a_freeze_with_nothing_new_gives_the_bytes_of_the_one_before(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        add_comparison(session, TRAIN, rater=add_rater(session, "ann"))
    first = build(engine, tmp_path / "one", frozen(engine))
    second = build(engine, tmp_path / "two", frozen(engine), tmp_path / "one")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert second == first
    with Session(engine) as session, session.begin():
        withdraw(session, "ann")
    withdrawn = build(engine, tmp_path / "three", frozen(engine), tmp_path / "two")
    assert (withdrawn.num_comparisons, withdrawn.freeze_id) == (0, 3)
    build(engine, tmp_path / "four", frozen(engine))
    assert contents(tmp_path / "four") == contents(tmp_path / "three") != contents(tmp_path / "one")


def test_a_pin_that_comes_later_rewrites_the_shards_it_touches_and_no_other(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_set, "SHARD_COMPARISONS", 2)
    with Session(engine) as session, session.begin():
        early = [str(add_comparison(session, text).id) for text in ("a", TRAIN, "c", "d")]
    build(engine, tmp_path / "one", frozen(engine))
    with Session(engine) as session, session.begin():
        pinned = str(add_comparison(session, TRAIN, dialogue={"pinned_split": "held_out"}).id)
    second = frozen(engine)
    results = build(engine, tmp_path / "two", second, tmp_path / "one")
    build(engine, tmp_path / "anew", second)
    assert contents(tmp_path / "two") == contents(tmp_path / "anew")
    assert [record["id"] for record in records(tmp_path / "two")] == [early[0], *early[2:], pinned]
    assert results.excluded == {"held_out_elsewhere": 1}
    names = sorted(path.name for path in (tmp_path / "one" / "shards").iterdir())
    same = [(tmp_path / "one/shards" / name).samefile(tmp_path / "two/shards" / name) for name in names]
    assert same == [False, True]


def test_the_set_of_a_freeze_does_not_see_what_came_after_it(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        add_comparison(session, TRAIN)
    first = frozen(engine)
    build(engine, tmp_path / "then", first)
    with Session(engine) as session, session.begin():
        add_comparison(session, TRAIN, dialogue={"pinned_split": "held_out"})
    build(engine, tmp_path / "not_frozen", first)
    frozen(engine)
    build(engine, tmp_path / "later", first)
    assert contents(tmp_path / "then") == contents(tmp_path / "not_frozen") == contents(tmp_path / "later")


def test_an_earlier_set_is_found_only_with_the_same_settings(engine: Engine, tmp_path: Path) -> None:
    first, second = frozen(engine), frozen(engine)
    with Session(engine) as session, session.begin():
        row = session.get_one(t.Freeze, first)
        settings = HALF.selection() | {"freeze_id": first, "freeze": freeze.freeze_digest(row)}
        artifact = add_artifact(session, "comparison_set", settings=settings)
        assert freeze.previous_comparison_set(session, second, HALF) is artifact
        assert freeze.previous_comparison_set(session, first, HALF) is None
        assert freeze.previous_comparison_set(session, second, ComparisonsSection(min_strength=2)) is None


def test_an_empty_freeze_gives_an_empty_set(engine: Engine, tmp_path: Path) -> None:
    results = build(engine, tmp_path / "set", frozen(engine))
    assert results.num_comparisons == 0
    assert records(tmp_path / "set") == []


def test_a_freeze_that_does_not_exist_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(CycleError, match="no freeze with id 7"):
        build(engine, tmp_path / "set", 7)


def test_a_published_set_shares_its_shards_with_the_week_before(engine: Engine, tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")
    with Session(engine) as session, session.begin():
        add_comparison(session, "week one")
    build(engine, tmp_path / "one", frozen(engine))
    one = store.fetch(store.publish(tmp_path / "one").digest)
    with Session(engine) as session, session.begin():
        add_comparison(session, "week two")
    build(engine, tmp_path / "two", frozen(engine), one)
    published = store.publish(tmp_path / "two")
    two = store.fetch(published.digest)
    name = sorted(path.name for path in (one / "shards").iterdir())[0]
    assert (one / "shards" / name).samefile(two / "shards" / name)
    assert store.verify(published.digest) == []


@pytest.mark.parametrize(
    ("runs", "size", "groups"),
    [
        ([(1, 5), (8, 9)], 3, [[(1, 3)], [(4, 5), (8, 8)], [(9, 9)]]),
        ([(1, 2)], 2, [[(1, 2)]]),
        ([(4, 4), (6, 6)], 5, [[(4, 4), (6, 6)]]),
        ([], 3, []),
    ],
)
def test_runs_are_cut_into_groups_of_equal_size(
    runs: list[tuple[int, int]], size: int, groups: list[list[tuple[int, int]]]
) -> None:
    assert list(comparison_set.cut_runs(runs, size)) == groups


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_binary_copy_is_read_however_it_is_cut(step: int) -> None:
    row = b"\0\2" + b"\0\0\0\3abc" + b"\xff\xff\xff\xff"
    stream = b"PGCOPY\n\xff\r\n\0" + bytes(8) + row + row + b"\xff\xff"
    taken: list[list[bytes | None]] = []
    rows = BinaryRows(lambda fields: taken.append([None if f is None else bytes(f) for f in fields]))
    for start in range(0, len(stream), step):
        rows.write(stream[start : start + step])
    assert taken == [[b"abc", None], [b"abc", None]]


def test_something_else_than_a_binary_copy_is_refused() -> None:
    with pytest.raises(ValueError, match="not a COPY BINARY stream"):
        BinaryRows(lambda fields: None).write(b"x" * 40)


def prompts(directory: Path) -> list[tuple[str, str, str]]:
    lines = (directory / "prompts.jsonl").read_text().splitlines()
    return [(r["split"], r["kind"], r["messages"][-1]["content"]) for r in map(json.loads, lines)]


def comparison_set_of(engine: Engine, directory: Path) -> Path:
    with Session(engine) as session, session.begin():
        for opening in (TRAIN, HELD_OUT, TRAIN):
            add_comparison(session, opening)
        add_comparison(session, TRAIN, pair_fields={"question": "more_harmful"})
        add_comparison(session, "Left out.", pair_fields={"purpose": "evaluation"})
    build(engine, directory, frozen(engine))
    return directory


def test_prompts_come_from_their_side_of_the_split_once_per_kind(engine: Engine, tmp_path: Path) -> None:
    comparisons = comparison_set_of(engine, tmp_path / "set")
    (tmp_path / "prompts").mkdir()
    results = freeze.build_prompt_set(comparisons, tmp_path / "prompts")
    assert prompts(tmp_path / "prompts") == [
        ("train", "helpful", TRAIN),
        ("held_out", "helpful", HELD_OUT),
        ("train", "harmless", TRAIN),
    ]
    assert (results["num_train"], results["num_held_out"], results["repeated"]) == (2, 1, 1)
    assert results["counts"] == {"train": {"helpful": 1, "harmless": 1}, "held_out": {"helpful": 1, "harmless": 0}}


def test_a_held_out_file_replaces_the_held_out_dialogues_and_bars_its_openings(engine: Engine, tmp_path: Path) -> None:
    comparisons = comparison_set_of(engine, tmp_path / "set")
    (tmp_path / "prompts").mkdir()
    write_prompts(tmp_path / "judge.jsonl", ("helpful", "write a poem"), ("harmless", "new"))
    write_prompts(tmp_path / "more.jsonl", ("helpful", "extra"), ("helpful", "New!"))
    results = freeze.build_prompt_set(
        comparisons, tmp_path / "prompts", train_file=tmp_path / "more.jsonl", held_out_file=tmp_path / "judge.jsonl"
    )
    assert prompts(tmp_path / "prompts") == [
        ("held_out", "helpful", "write a poem"),
        ("held_out", "harmless", "new"),
        ("train", "helpful", "extra"),
    ]
    assert results["held_out_elsewhere"] == 4  # the three comparisons that open with TRAIN, and "New!"


def write_prompts(file: Path, *lines: tuple[str, str]) -> None:
    text = [json.dumps({"kind": kind, "messages": [{"role": "user", "content": content}]}) for kind, content in lines]
    file.write_text("\n".join(text))


def test_no_prompts_on_one_side_is_an_error_that_says_what_to_do(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        add_comparison(session, TRAIN)
    build(engine, tmp_path / "set", frozen(engine))
    (tmp_path / "prompts").mkdir()
    with pytest.raises(CycleError, match=r"prompts\.held_out_file"):
        freeze.build_prompt_set(tmp_path / "set", tmp_path / "prompts")


def test_a_bad_line_of_a_prompt_file_is_named(engine: Engine, tmp_path: Path) -> None:
    comparisons = comparison_set_of(engine, tmp_path / "set")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "bad.jsonl").write_text('\n{"kind": "rude", "messages": []}')
    with pytest.raises(ConfigError, match=r"bad\.jsonl, line 2: missing_field: .*; expected"):
        freeze.build_prompt_set(comparisons, tmp_path / "prompts", train_file=tmp_path / "bad.jsonl")


def test_orientation_pairs_are_records_with_the_chosen_side_better(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    line = {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away.", "question": "harmless"}
    file.write_text(json.dumps(line))
    (tmp_path / "out").mkdir()
    assert pair_set.write_orientation_pairs(file, tmp_path / "out") == {"num_pairs": 1, "file": "pairs.jsonl"}
    (record,) = [json.loads(text) for text in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert record["prompt"] == [{"role": "user", "content": "Hi"}]
    assert (record["better"][-1]["content"], record["worse"][-1]["content"]) == ("Hello.", "Go away.")
    assert record["question"] == "harmless"
    file.write_text('{"prompt": "Hi", "chosen": "same", "rejected": "same"}')
    with pytest.raises(ConfigError, match="line 1 is no orientation pair"):
        pair_set.write_orientation_pairs(file, tmp_path / "out")


def test_a_file_digest_is_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert named_files.file_digest(tmp_path / "x").startswith("ba7816bf8f01cfea")  # SHA-256("abc"), FIPS 180-2
    with pytest.raises(ConfigError, match="can't be read"):
        named_files.file_digest(tmp_path / "y")
    assert ledger.fingerprint("k", {"a": 1}, {}) != ledger.fingerprint("k", {"a": 2}, {})
