"""Each format on small records worked by hand, and how a format is recognised."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.formats import (
    FORMATS,
    arena,
    detect,
    graded,
    hh,
    judged,
    make_parser,
    own,
    preferences,
    ranked_trees,
)
from orchestrator.data.formats.records import REASONS, ImportedComparison, Parser, Refused, load_object
from orchestrator.errors import ImportFileError
from tests.paths import PROJECT_ROOT

H, A = hh.HUMAN, hh.ASSISTANT


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def one(parse: Parser, record: dict[str, Any]) -> ImportedComparison:
    (found,) = parse(record)
    assert isinstance(found, ImportedComparison)
    return found


def reason(parse: Parser, record: dict[str, Any]) -> str:
    with pytest.raises(Refused) as refused:
        list(parse(record))
    return refused.value.reason


def test_hh_cuts_at_the_last_shared_assistant_marker() -> None:
    record = {"chosen": f"{H} a{A} b{H} c{A} good", "rejected": f"{H} a{A} b{H} c{A} bad"}
    found = one(hh.parse, record)
    assert found.prompt == [user("a"), assistant("b"), user("c")]
    assert (found.a.text, found.b.text, found.side) == ("good", "bad", "a")
    assert found.a.history == found.b.history == []


def test_hh_keeps_a_reply_that_quotes_markers_whole() -> None:
    record = {"chosen": f"{H} a{A} b{H} c{A} d", "rejected": f"{H} a{A} e"}
    found = one(hh.parse, record)
    assert found.prompt == [user("a")]
    assert (found.a.text, found.b.text) == (f"b{H} c{A} d", "e")


def test_hh_gives_each_side_its_history_where_both_go_on() -> None:
    record = {"chosen": f"{H} a{A} b1{H} c{A} d1", "rejected": f"{H} a{A} b2{H} c{A} d2"}
    found = one(hh.parse, record)
    assert found.prompt == [user("a")]
    assert found.a.messages() == [assistant("b1"), user("c"), assistant("d1")]
    assert found.b.messages() == [assistant("b2"), user("c"), assistant("d2")]


def test_hh_keeps_empty_messages_and_repeated_roles() -> None:
    record = {"chosen": f"{H} a{H} b{A}{A} c{H} {A}", "rejected": f"{H} a{H} b{A}{A} c{H} {A} x"}
    found = one(hh.parse, record)
    assert found.prompt == [user("a"), user("b"), assistant(""), assistant("c"), user("")]
    assert (found.a.text, found.b.text) == ("", "x")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (f"{H} a{A} b", f"{H} x{A} b", "prompts_differ"),
        (f"{H} a{A} b", f"{H} a{A} b", "identical_replies"),
        (f"Person: a{A} b", f"{H} a{A} c", "malformed_dialogue"),
        (f"{H} a{A}{H} b{A} c", f"{H} a{A} d", "malformed_dialogue"),
        (f"{H} a", f"{H} a{A} c", "malformed_dialogue"),
        (f"{H} a{A} b{A} c", f"{H} a{A} b{A} d", "no_user_message"),
    ],
)
def test_hh_refuses(chosen: str, rejected: str, expected: str) -> None:
    assert reason(hh.parse, {"chosen": chosen, "rejected": rejected}) == expected


def test_preferences_take_texts_messages_and_whole_dialogues() -> None:
    texts = one(preferences.parse, {"prompt": "q", "chosen": "good", "rejected": "bad", "score": 3})
    assert (texts.prompt, texts.a.text, texts.b.text) == ([user("q")], "good", "bad")
    assert texts.source_value == {"score": 3}
    marked = one(preferences.parse, {"prompt": f"{H} a{A} b{H} c{A}", "chosen": "good", "rejected": "bad"})
    assert marked.prompt == [user("a"), assistant("b"), user("c")]
    lists = {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}
    assert one(preferences.parse, lists).prompt == [user("q")]
    whole = {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]}
    for record in (whole, {**whole, "prompt": "q"}, {**whole, "prompt": [user("q")]}):
        found = one(preferences.parse, record)
        assert (found.prompt, found.a.text, found.a.history) == ([user("q")], "good", [])


def test_preferences_give_each_side_its_history() -> None:
    sides = [[user("q"), assistant(f"first {n}"), user("more"), assistant(f"last {n}")] for n in (1, 2)]
    found = one(preferences.parse, {"chosen": sides[0], "rejected": sides[1]})
    assert found.prompt == [user("q")]
    assert found.b.history == [assistant("first 2"), user("more")]
    # A shared first reply is no prompt where the next questions differ: the prompt ends with a user message.
    sides = [[user("q"), assistant("first"), user(f"more {n}"), assistant(f"last {n}")] for n in (1, 2)]
    found = one(preferences.parse, {"chosen": sides[0], "rejected": sides[1]})
    assert found.prompt == [user("q")]
    assert found.a.history == [assistant("first"), user("more 1")]


def test_conversations_are_labelled_by_models() -> None:
    record = {
        "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    }
    found = one(preferences.parse_conversations, record)
    assert found.prompt == [{"role": "system", "content": "s"}, user("q")]
    assert (found.a.text, found.label_kind) == ("good", "model")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "q", "chosen": "a"}, "missing_field"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "wrong_type"),
        ({"prompt": [user("q")], "chosen": [user("a")], "rejected": [assistant("b")]}, "no_reply"),
        ({"prompt": [assistant("q")], "chosen": "a", "rejected": "b"}, "no_user_message"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "no_user_message"),
        ({"prompt": [{"role": "tool", "content": "q"}], "chosen": "a", "rejected": "b"}, "unknown_value"),
        ({"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "wrong_type"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("b")]}, "prompts_differ"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical_replies"),
    ],
)
def test_preferences_refuse(record: dict[str, Any], expected: str) -> None:
    assert reason(preferences.parse, record) == expected


@pytest.fixture
def mt_bench(tmp_path: Path) -> Parser:
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question_id": 7, "turns": ["q1", "q2"]}) + "\n")
    answers = [
        {"question_id": 7, "model_id": model, "choices": [{"turns": [f"{model} 1", f"{model} 2"]}]} for model in "xy"
    ]
    (tmp_path / "model_answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return make_parser("mt_bench", tmp_path / "judgments.jsonl")


def verdict(**changes: Any) -> dict[str, Any]:
    return {
        "judge": "expert_1", "question_id": 7, "turn": 1, "model_a": "x", "model_b": "y", "winner": "model_b", **changes
    }  # fmt: skip


def test_mt_bench_joins_questions_and_answers(mt_bench: Parser) -> None:
    first = one(mt_bench, verdict())
    assert (first.prompt, first.a.text, first.b.text, first.side) == ([user("q1")], "x 1", "y 1", "b")
    assert (first.rater, first.label_kind, first.a.contestant, first.external_id) == ("expert_1", "human", "x", "7")
    second = one(mt_bench, verdict(turn=2, winner="tie"))
    assert (second.side, second.reason) == ("none", "tie")
    assert second.a.messages() == [assistant("x 1"), user("q2"), assistant("x 2")]
    model = one(mt_bench, verdict(judge="gpt4_pair", winner="tie (inconsistent)"))
    assert (model.label_kind, model.reason) == ("model", "tie")
    assert model.source_value is not None
    assert model.source_value["winner"] == "tie (inconsistent)"


def test_arena_votes_carry_their_conversations() -> None:
    sides = {
        f"conversation_{x}": [user("q1"), assistant(f"{x} 1"), user("q2"), assistant(f"{x} 2")] for x in ("a", "b")
    }
    record = verdict(question_id="58ab", judge="arena_user_9", winner="model_a", **sides)
    found = one(arena.parse, record)
    assert (found.prompt, found.side, found.external_id, found.rater) == ([user("q1")], "a", "58ab", "arena_user_9")
    assert found.b.messages() == [assistant("b 1"), user("q2"), assistant("b 2")]
    assert (found.a.contestant, found.label_kind) == ("x", "human")
    bad = one(arena.parse, record | {"winner": "tie (bothbad)", "judge": "gpt4_pair"})
    assert (bad.side, bad.reason, bad.label_kind) == ("none", "tie", "model")
    assert reason(arena.parse, record | {"conversation_b": sides["conversation_a"]}) == "identical_replies"
    assert reason(arena.parse, record | {"conversation_b": [user("x"), assistant("y")]}) == "prompts_differ"


def test_mt_bench_refuses_what_it_cannot_join(mt_bench: Parser) -> None:
    assert reason(mt_bench, verdict(question_id=8)) == "unknown_question"
    assert reason(mt_bench, verdict(model_a="z")) == "unknown_answer"
    assert reason(mt_bench, verdict(turn=3)) == "unknown_value"
    assert reason(mt_bench, verdict(winner="both")) == "unknown_value"
    assert reason(mt_bench, verdict(model_b="x")) == "identical_replies"


def test_mt_bench_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match=r"questions\.jsonl does not lie beside it.*--questions"):
        make_parser("mt_bench", tmp_path / "judgments.jsonl")


@pytest.mark.parametrize(
    ("preference", "side", "strength"),
    [
        ("a-is-better", "a", 4),
        ("a-is-slightly-better", "a", 1),
        ("tie", "none", None),
        ("b-is-slightly-better", "b", 1),
        ("b-is-better", "b", 4),
    ],
)
def test_grades_become_side_and_strength(preference: str, side: str, strength: int | None) -> None:
    record = {
        "prompt": "q", "completion_a": "x", "completion_b": "y", "model_a": "m", "model_b": "n",
        "preference": preference, "evaluator": "e", "timestamp": "2023-05-21 09:11:23", "instance_id": "i_1",
    }  # fmt: skip
    found = one(graded.parse, record)
    assert (found.side, found.strength, found.reason) == (side, strength, "tie" if side == "none" else None)
    assert found.decided_at == datetime(2023, 5, 21, 9, 11, 23, tzinfo=UTC)
    assert found.source_value is not None
    assert found.source_value["preference"] == preference
    assert "prompt" not in found.source_value
    assert reason(graded.parse, {**record, "preference": "a"}) == "unknown_value"
    assert reason(graded.parse, {**record, "timestamp": "yesterday"}) == "wrong_type"


@pytest.mark.parametrize(("label", "side"), [(1, "a"), (2, "b")])
def test_llmbar_prefers_the_output_with_its_label(label: int, side: str) -> None:
    found = one(judged.parse_llmbar, {"input": "Sing.", "output_1": "la", "output_2": "no", "label": label})
    assert (found.prompt, found.a.text, found.b.text, found.side) == ([user("Sing.")], "la", "no", side)
    assert reason(judged.parse_llmbar, {"input": "x", "output_1": "a", "output_2": "b", "label": 0}) == "unknown_value"


def test_a_right_answer_is_compared_with_each_wrong_one() -> None:
    scored = {"input": "Well?", "target_scores": {"no": 0, "yes": 1, "perhaps": 0}}
    listed = {"input": "Well?", "targets": {"choices": ["no", "yes", "perhaps"], "labels": [0, 1, 0]}}
    for record in (scored, listed):
        pairs = [(item.a.text, item.b.text, item.side) for item in judged.parse_choices(record)]
        assert pairs == [("yes", "no", "a"), ("yes", "perhaps", "a")]
    assert reason(judged.parse_choices, {"input": "x", "target_scores": {"a": 1, "b": 1}}) == "unknown_value"
    assert reason(judged.parse_choices, {"input": "x", "target_scores": {"a": 0.5, "b": 1}}) == "unknown_value"
    assert reason(judged.parse_choices, {"input": "x", "targets": {"choices": ["a"], "labels": []}}) == "wrong_type"


def test_ranked_siblings_are_compared_two_by_two() -> None:
    def reply(name: str, rank: int | None) -> dict[str, Any]:
        return {"message_id": name, "role": "assistant", "text": name, "replies": [], "rank": rank}

    deep = {"message_id": "p2", "role": "prompter", "text": "more", "replies": [reply("d", 1), reply("e", 0)]}
    best = {**reply("best", 0), "replies": [deep]}
    root = {"role": "prompter", "text": "q", "replies": [reply("third", 2), best, reply("second", 1), reply("x", None)]}
    found = list(ranked_trees.parse({"message_tree_id": "t", "prompt": root}))
    comparisons = [item for item in found if isinstance(item, ImportedComparison)]
    # Three ranked siblings give 3 pairs, best first; the two deeper ones give 1 more.
    assert [(item.a.text, item.b.text) for item in comparisons] == [
        ("best", "second"), ("best", "third"), ("second", "third"), ("e", "d")
    ]  # fmt: skip
    assert comparisons[3].prompt == [user("q"), assistant("best"), user("more")]
    assert all(item.side == "a" and item.external_id == "t" for item in comparisons)
    assert [item.reason for item in found if isinstance(item, Refused)] == ["unranked"]
    twins = {"role": "prompter", "text": "q", "replies": [reply("a", 0), reply("b", 0)]}
    (refused,) = ranked_trees.parse({"message_tree_id": "t", "prompt": twins})
    assert isinstance(refused, Refused)
    assert refused.reason == "equal_ranks"
    alone = {"role": "prompter", "text": "q", "replies": [reply("a", 0)]}
    assert reason(ranked_trees.parse, {"message_tree_id": "t", "prompt": alone}) == "no_comparison"


def tree_message(name: str, rank: Any = None, *replies: dict[str, Any], **changes: Any) -> dict[str, Any]:
    role = "prompter" if name.startswith("q") else "assistant"
    return {"message_id": name, "role": role, "text": name, "rank": rank, "replies": list(replies), **changes}


def read_tree(*replies: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    found = list(ranked_trees.parse({"message_tree_id": "t", "prompt": tree_message("q", None, *replies)}))
    pairs = [(item.a.text, item.b.text) for item in found if isinstance(item, ImportedComparison)]
    return pairs, [item.reason for item in found if isinstance(item, Refused)]


def test_ranks_of_a_column_with_gaps_are_whole_numbers() -> None:
    # pandas writes 0.0, 2.0 and 1.0 where one row of the column holds nothing.
    replies = [tree_message("c", 0.0), tree_message("e", 2.0), tree_message("d", 1.0)]
    assert read_tree(*replies) == ([("c", "d"), ("c", "e"), ("d", "e")], [])
    assert read_tree(*replies[:2], tree_message("x", 1.5)) == ([("c", "e")], ["wrong_type"])
    assert read_tree(*replies[:2], tree_message("x", "1")) == ([("c", "e")], ["wrong_type"])


@pytest.mark.parametrize(
    "flag", [{"deleted": True}, {"review_result": False}, {"deleted": 1.0}, {"review_result": 0.0}]
)
def test_what_was_deleted_or_turned_down_is_no_reply_and_no_beginning(flag: dict[str, Any]) -> None:
    kept = [tree_message("a", 0, deleted=False, review_result=True), tree_message("c", 2, deleted=None)]
    assert read_tree(*kept, tree_message("b", 1, **flag)) == ([("a", "c")], ["deleted"])
    below = [tree_message("d", 0), tree_message("e", 1)]
    # Neither what answers a deleted reply nor what answers a deleted question below it has a beginning.
    gone = tree_message("b", 1, tree_message("q2", None, *below), **flag)
    assert read_tree(*kept, gone) == ([("a", "c")], ["deleted"])
    later = tree_message("b", 1, tree_message("q2", None, *below, **flag))
    assert read_tree(*kept, later) == ([("a", "b"), ("a", "c"), ("b", "c")], ["deleted"])
    (refused,) = (
        item
        for item in ranked_trees.parse({"message_tree_id": "t", "prompt": tree_message("q", None, *kept, gone)})
        if isinstance(item, Refused)
    )
    assert refused.raw is not None
    assert '"text": "e"' in refused.raw
    root = {"message_tree_id": "t", "prompt": tree_message("q", None, *kept, **flag)}
    assert reason(ranked_trees.parse, root) == "deleted"


def test_a_message_that_cannot_be_read_costs_its_own_branch_alone() -> None:
    odd = tree_message("b", 1, role="tool")
    assert read_tree(tree_message("a", 0), odd, tree_message("c", 2)) == ([("a", "c")], ["unknown_value"])
    assert read_tree(tree_message("a", 0), tree_message("b", 1, text=3), tree_message("c", 2))[1] == ["wrong_type"]


@pytest.mark.parametrize(
    ("winner", "side"),
    [("model_b", "b"), ("both_bad", "none"), ("BOTH_GOOD", "none"), ("tie (bothbad)", "none"), ("Model_A", "a")],
)
def test_arena_verdicts_of_all_years(winner: str, side: str) -> None:
    parts = {
        f"conversation_{x}": [
            {"role": role, "content": [{"type": "text", "text": text, "image": None}], "num_tokens": 1}
            for role, text in (("user", "q"), ("assistant", x))
        ]
        for x in ("a", "b")
    }
    record = {"model_a": "x", "model_b": "y", "winner": winner, **parts, "question_id": 7.0}
    found = one(arena.parse, record)
    assert (found.prompt, found.a.text, found.b.text, found.side) == ([user("q")], "a", "b", side)
    assert (found.reason, found.external_id) == ("tie" if side == "none" else None, "7")
    assert reason(arena.parse, {**record, "winner": "neither"}) == "unknown_value"


def test_numbers_of_verdicts_may_be_whole_floats(mt_bench: Parser) -> None:
    whole = one(mt_bench, verdict(question_id=7.0, turn=2.0))
    assert (whole.external_id, whole.a.text) == ("7", "x 2")
    assert reason(mt_bench, verdict(turn=1.5)) == "wrong_type"
    assert reason(mt_bench, verdict(question_id=True)) == "wrong_type"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": ', "not_json"),
        ('{"a": NaN}', "not_json"),
        ('{"a": 1e999}', "not_json"),
        ('{"a": ' + "9" * 5000 + "}", "not_json"),
        ("[" * 100_000, "not_json"),
        ('{"a": "\x01"}', "not_json"),
        ('"text"', "not_object"),
        ('{"a": ["x\\u0000y"]}', "nul"),
        ('{"a\\u0000": 1}', "nul"),
        ('{"a": "\\ud800"}', "lone_surrogate"),
        ('{"a": "\\uDC00x"}', "lone_surrogate"),
    ],
)
def test_records_that_cannot_be_stored_are_refused(text: str, expected: str) -> None:
    with pytest.raises(Refused) as refused:
        load_object(text)
    assert refused.value.reason == expected


def test_escapes_that_are_harmless_are_read() -> None:
    assert load_object('{"a": "\\ud83d\\ude00 \\\\u0000 \\u00e9 1e5", "b": 1e5}') == {
        "a": "😀 \\u0000 é 1e5",
        "b": 100000.0,
    }


RECOGNISED: dict[str, dict[str, Any]] = {
    "own": {"format": own.FORMAT, "prompt": [], "a": {}, "b": {}},
    "hh": {"chosen": f"{H} a{A} b", "rejected": f"{H} a{A} c"},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "conversations": {"conversations": [], "chosen": {}, "rejected": {}},
    "mt_bench": verdict(),
    "arena": verdict(conversation_a=[], conversation_b=[]),
    "graded": {"preference": "tie", "completion_a": "", "completion_b": "", "prompt": ""},
    "llmbar": {"input": "", "output_1": "", "output_2": "", "label": 1},
    "choices": {"input": "", "target_scores": {}},
    "ranked_trees": {"message_tree_id": "t", "prompt": {}, "tree_state": ""},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_as_itself_alone(name: str) -> None:
    assert detect(RECOGNISED[name], "file") == name


def test_an_unclear_format_names_the_fields_and_what_each_format_needs() -> None:
    slip = {"prompt": "p", "choosen": "a", "rejected": "b"}
    with pytest.raises(ImportFileError) as error:
        detect(slip, "f, line 1")
    said = str(error.value)
    assert said.startswith("f, line 1: found an object with the fields choosen, prompt, rejected, which fits no known")
    assert "preference: prompt, chosen, rejected; " in said
    assert all(f"{name}: " in said for name in FORMATS)
    assert "may be" not in said
    with pytest.raises(ImportFileError, match="found an object with the fields none, which"):
        detect({}, "f, line 1")
    with pytest.raises(ImportFileError, match=r"f00, .*, f23 …, which"):
        detect({f"f{number:02}": 1 for number in range(25)}, "f, line 1")
    both = {**RECOGNISED["preference"], **RECOGNISED["graded"]}
    with pytest.raises(ImportFileError, match=r"more than one format \(preference, graded\). Name one with --format"):
        detect(both, "f, line 1")


def test_every_reason_code_and_format_is_documented() -> None:
    page = (PROJECT_ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    for name in (*REASONS, *FORMATS):
        assert f"`{name}`" in page, name
