"""Whatever of the prompt the sides repeat: no message stands twice, no reply holds a dialogue, nothing is guessed."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.formats import FORMATS, detect, hh, make_parser, own
from orchestrator.data.formats.records import ImportedComparison, Message, Refused, holds_dialogue

BLANKS = st.sampled_from(["", " ", "\n", "  \n"])
SPELLINGS = {
    "system": ["system", "System", "developer"],
    "user": ["user", "User", "HUMAN", "prompter"],
    "assistant": ["assistant", "ASSISTANT", "gpt", "Bot"],
}
H, A = hh.HUMAN, hh.ASSISTANT


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}


def read(record: dict[str, Any]) -> ImportedComparison:
    parse = FORMATS[detect(record, "file")].parse
    assert parse is not None
    (found,) = parse(record)
    assert isinstance(found, ImportedComparison)
    return found


def refusal(record: dict[str, Any]) -> str | None:
    """The reason for which a record is refused, None where it is read."""
    try:
        read(record)
    except Refused as refused:
        return refused.reason
    return None


def said(found: ImportedComparison) -> tuple[list[Message], str, str]:
    assert found.a.history == found.b.history == []
    return found.prompt, found.a.text, found.b.text


@dataclass
class Told:
    """A record, and the numbers of the dialogue's messages that its prompt or its sides tell."""

    record: dict[str, Any]
    told: set[int]


@st.composite
def told(draw: st.DrawFn) -> tuple[list[dict[str, str]], Told]:
    """A dialogue, and one of the many ways in which a record tells it."""
    num_turns = draw(st.integers(1, 3))
    dialogue = [SYSTEM]
    for turn in range(num_turns):
        dialogue += [user(f"question {turn}?"), assistant(f"answer {turn}.")]
    dialogue.pop()
    ends = ("good reply", "bad reply")
    name = draw(st.sampled_from(["prompt", "conversations"]))
    prompt, prompt_told = draw(prompts(dialogue))
    sides, sides_told = draw(sides_of(dialogue, ends))
    record = {name: prompt, "chosen": sides[0], "rejected": sides[1]}
    if name == "prompt" and prompt is None and all(isinstance(side, list) for side in sides) and draw(st.booleans()):
        del record["prompt"]
    if draw(st.booleans()):
        record["system"] = SYSTEM["content"]
        sides_told = sides_told | {0}
    return dialogue, Told(record, prompt_told | sides_told)


@st.composite
def prompts(draw: st.DrawFn, dialogue: list[dict[str, str]]) -> tuple[Any, set[int]]:
    last = len(dialogue) - 1
    kind = draw(st.sampled_from(["none", "first", "last", "hh", "hh open", "messages", "without system", "system"]))
    if kind == "none":
        return draw(st.sampled_from([None, "", "  ", []])), set()
    if kind in ("first", "last"):
        number = 1 if kind == "first" else last
        return draw(BLANKS) + dialogue[number]["content"], {number}
    if kind in ("hh", "hh open"):
        return draw(hh_text(dialogue)) + (A if kind == "hh open" else ""), set(range(1, last + 1))
    first, end = {"messages": (0, last), "without system": (1, last), "system": (0, 0)}[kind]
    return draw(messages(dialogue[first : end + 1])), set(range(first, end + 1))


@st.composite
def sides_of(draw: st.DrawFn, dialogue: list[dict[str, str]], ends: tuple[str, str]) -> tuple[list[Any], set[int]]:
    last = len(dialogue) - 1
    kind = draw(
        st.sampled_from(["text", "message", "whole", "with system", "last turn", "hh", "message of hh", "mixed"])
    )
    whole = set(range(1, last + 1))
    replies = [assistant(end) for end in ends]
    if kind == "text":
        return list(ends), set()
    if kind == "message":
        return [draw(messages([reply])) for reply in replies], set()
    if kind in ("hh", "message of hh"):
        texts = [draw(hh_text([*dialogue, reply])) for reply in replies]
        return [draw(messages([assistant(text)])) for text in texts] if kind == "message of hh" else texts, whole
    if kind == "mixed":
        return [draw(messages([*dialogue[1:], replies[0]])), ends[1]], whole
    first = {"whole": 1, "with system": 0, "last turn": last}[kind]
    numbers = set(range(first, last + 1))
    return [draw(messages([*dialogue[first:], reply])) for reply in replies], numbers


@st.composite
def hh_text(draw: st.DrawFn, dialogue: list[dict[str, str]]) -> str:
    text = hh.render_messages([m for m in dialogue if m["role"] != "system"])  # type: ignore[arg-type,misc]
    assert text is not None
    # One turn without its marker's line ends may as well be what a person wrote.
    bare = [text.strip()] if A in text else []
    return draw(st.sampled_from([text, f" {text}", f"\n{text.strip()}", *bare]))


@st.composite
def messages(draw: st.DrawFn, given: list[dict[str, str]]) -> list[dict[str, Any]]:
    role, content = draw(st.sampled_from([("role", "content"), ("from", "value")]))
    in_parts = draw(st.booleans())
    return [
        {
            role: draw(st.sampled_from(SPELLINGS[message["role"]])),
            content: [{"type": "text", "text": message["content"]}] if in_parts else message["content"],
        }
        for message in given
    ]


@given(told())
@settings(max_examples=500, deadline=None, derandomize=True)
def test_a_dialogue_is_read_as_far_as_it_is_told_and_each_message_once(case: tuple[list[Any], Told]) -> None:
    dialogue, told = case
    last = len(dialogue) - 1
    expected = [dialogue[number] for number in sorted(told.told)]
    if (reason := refusal(told.record)) is not None:
        # The last question is told nowhere, one side alone tells a dialogue whose end the prompt does not tell, or
        # prompt and sides tell two ends between which something is missing.
        mixed = isinstance(told.record["chosen"], list) and isinstance(told.record["rejected"], str)
        gap = last > 1 and {1, last} <= told.told and last - 1 not in told.told
        assert reason in ("no_user_message", "prompts_differ")
        assert mixed or gap or last not in told.told
        return
    found = read(told.record)
    for side, reply in ((found.a, "good reply"), (found.b, "bad reply")):
        whole = [*found.prompt, *side.messages()]
        assert [(m["role"], m["content"].strip()) for m in whole] == [
            *((m["role"], m["content"]) for m in expected), ("assistant", reply)
        ]  # fmt: skip


MARKED = st.sampled_from(
    [
        f"{H} a{A} b",
        f" {H} a{A} b{H} c{A} d",
        f"Human: a{A} b",
        f"\n{H} a\n\nAssistant:b",
        "Human: a\nAssistant: b",
        "### Human: a\n### Assistant: b",
        "User: a\n\nAI: b",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>",
        "<s>[INST] a [/INST] b</s>",
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
        "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>",
        H,
        A,
        "b",
        "c",
        "",
    ]
)


def records_with(one: str, other: str) -> dict[str, dict[str, Any]]:
    """A record of each format with these texts where the replies stand; MT-bench has them in a file of its own."""
    rank = {"role": "assistant", "message_id": "m"}
    both = {"prompt": "q", "chosen": one, "rejected": other}
    return {
        "hh": {"chosen": f"{H} q{A}{one}", "rejected": f"{H} q{A}{other}"},
        "preference": both,
        "conversations": {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": one},
            "rejected": {"from": "gpt", "value": other},
        },
        "arena": {
            "winner": "model_a", "model_a": "x", "model_b": "y",
            "conversation_a": [user("q"), assistant(one)], "conversation_b": [user("q"), assistant(other)],
        },
        "mt_bench": {
            "judge": "expert_1", "question_id": 7.0, "turn": 1, "model_a": "x", "model_b": "y", "winner": "model_a",
        },
        "graded": {"preference": "a-is-better", "prompt": "q", "completion_a": one, "completion_b": other},
        "llmbar": {"input": "q", "output_1": one, "output_2": other, "label": 1.0},
        "choices": {"input": "q", "targets": {"choices": [one, other], "labels": [1.0, 0.0]}},
        "ranked_trees": {
            "message_tree_id": "t",
            "prompt": {
                "role": "prompter", "text": "q",
                "replies": [rank | {"text": one, "rank": 0.0}, rank | {"text": other, "rank": 1.0}],
            },
        },
    }  # fmt: skip


def parsed(name: str, one: str, other: str) -> list[ImportedComparison]:
    """What the format's parser reads of its record."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "judgments.jsonl"
        answers = [
            {"question_id": 7, "model_id": m, "choices": [{"turns": [t]}]} for m, t in (("x", one), ("y", other))
        ]
        file.with_name("questions.jsonl").write_text(json.dumps({"question_id": 7, "turns": ["q"]}))
        file.with_name("model_answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        items = make_parser(name, file)(records_with(one, other)[name])
        return [item for item in items if isinstance(item, ImportedComparison)]


def test_the_property_covers_every_format() -> None:
    # Our own records say what was shown, whatever it was.
    assert {*records_with("a", "b"), "own"} == set(FORMATS)


@given(st.sampled_from(sorted(records_with("", ""))), MARKED, MARKED)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_no_format_gives_a_reply_that_is_a_dialogue(name: str, one: str, other: str) -> None:
    plain = one != other and {one, other} <= {"b", "c", ""}
    found: list[ImportedComparison] = []
    with contextlib.nullcontext() if plain else contextlib.suppress(Refused):
        found = parsed(name, one, other)
    assert found or not plain
    for item in found:
        for side in (item.a, item.b):
            contents = [message["content"] for message in (*item.prompt, *side.messages())]
            assert contents.count("q") == 1
            assert not side.text.lstrip(" ").startswith((H, A))
            # hh-rlhf marks where a reply begins, and real replies of it go on with a line of Human's.
            assert name == "hh" or not holds_dialogue(side.text)


def test_a_text_beside_whole_dialogues_in_one_text_each() -> None:
    dialogues = {f"{key}": f"{H} Can fish sleep?{A} Yes.{H} At night?{A} {reply}" for key, reply in
                 (("chosen", "Mostly."), ("rejected", "No."))}  # fmt: skip
    asked = [user("Can fish sleep?"), assistant("Yes."), user("At night?")]
    for prompt in ("", None, [], "Can fish sleep?", "  Can fish sleep?", "At night?", f"{H} Can fish sleep?"):
        assert said(read({"prompt": prompt, **dialogues})) == (asked, "Mostly.", "No.")
    assert refusal({"prompt": "Can dogs sleep?", **dialogues}) == "prompts_differ"
    one = {**dialogues, "rejected": "No."}
    assert refusal({"prompt": "Can fish sleep?", **one}) == "malformed_dialogue"


def test_a_system_text_before_the_first_turn_is_a_system_message() -> None:
    told = {side: f"System: Be brief.{H} q{A} {side}" for side in ("chosen", "rejected")}
    assert said(read(told)) == ([SYSTEM, user("q")], "chosen", "rejected")
    for prompt in ("q", "", [SYSTEM, user("q")]):
        assert said(read({"prompt": prompt, **told})) == ([SYSTEM, user("q")], "chosen", "rejected")
    assert refusal({"prompt": "other", **told}) == "prompts_differ"
    # Words that are not marked as a system text may as well be the assistant's.
    unmarked = {side: text.removeprefix("System: ") for side, text in told.items()}
    for prompt in ("q", ""):
        assert refusal({"prompt": prompt, **unmarked}) == "malformed_dialogue"


def test_texts_that_both_go_on_give_each_side_its_history() -> None:
    record = {"prompt": "q", "chosen": f"one{H} more{A} good", "rejected": f"two{H} more{A} bad"}
    found = read(record)
    assert found.a.messages() == [assistant("one"), user("more"), assistant("good")]
    assert found.b.messages() == [assistant("two"), user("more"), assistant("bad")]
    # One alone quotes: it is a reply as it stands.
    assert read({**record, "rejected": "bad"}).a.text == record["chosen"]


def test_line_ends_of_windows_before_markers_are_line_ends() -> None:
    told = {side: f"{H} q{A} {side}".replace("\n", "\r\n") for side in ("chosen", "rejected")}
    for record in (told, {"prompt": "q", **told}):
        assert said(read(record)) == ([user("q")], "chosen", "rejected")


def test_lists_of_messages_in_one_text_are_messages() -> None:
    sides = {side: [user("q"), assistant(side)] for side in ("chosen", "rejected")}
    told = {side: json.dumps(turns) for side, turns in sides.items()}
    assert said(read(told)) == ([user("q")], "chosen", "rejected")
    for prompt in ("q", [user("q")], json.dumps([user("q")]), "", None):
        assert said(read({"prompt": prompt, **told})) == ([user("q")], "chosen", "rejected")
    # What Python prints of a list is no JSON.
    assert refusal({"prompt": "q", **{side: repr(turns) for side, turns in sides.items()}}) == "malformed_dialogue"
    assert refusal({"prompt": "q", **told, "rejected": "no"}) == "malformed_dialogue"


def test_parts_without_a_role_are_the_prompt_or_the_reply() -> None:
    record = {key: [{"type": "text", "text": key}] for key in ("prompt", "chosen", "rejected")}
    assert said(read(record)) == ([user("prompt")], "chosen", "rejected")


def test_markers_before_both_replies_are_no_part_of_them() -> None:
    assert said(read({"prompt": "q", "chosen": f"{A} yes", "rejected": f"{A} no"})) == ([user("q")], "yes", "no")


def test_a_system_message_stands_once_and_first() -> None:
    sides = {"chosen": [SYSTEM, user("q"), assistant("a")], "rejected": [SYSTEM, user("q"), assistant("b")]}
    bare = {"chosen": "a", "rejected": "b"}
    whole = [SYSTEM, user("q")]
    for record in (
        {"prompt": "q", **sides},
        {"prompt": [user("q")], **sides, "system": "Be brief."},
        {"prompt": whole, **sides, "system": " Be brief. "},
        {"prompt": whole, "chosen": sides["chosen"][1:], "rejected": sides["rejected"][1:]},
        {"prompt": "q", **bare, "system": "Be brief."},
        {"conversations": whole, **bare, "system": "Be brief."},
        {"conversations": [user("q")], **sides},
    ):
        assert said(read(record)) == (whole, "a", "b")
    assert refusal({"prompt": whole, **bare, "system": "Be long."}) == "systems_differ"
    other = [{"role": "system", "content": "Be long."}, *sides["rejected"][1:]]
    assert refusal({"prompt": "q", **sides, "rejected": other}) == "systems_differ"
    assert refusal({"prompt": "q", **sides, "rejected": sides["rejected"][1:]}) == "prompts_differ"


def test_a_prompt_that_the_sides_go_on_from_is_kept_whole() -> None:
    before = [user("one"), assistant("two")]
    sides = {side: [user("three"), assistant(side)] for side in ("chosen", "rejected")}
    assert said(read({"prompt": before, **sides})) == ([*before, user("three")], "chosen", "rejected")
    assert said(read({"prompt": [*before, user("three")], **sides})) == ([*before, user("three")], "chosen", "rejected")
    differing = [[user(f"zero {number}"), assistant("two"), *sides[side]] for number, side in enumerate(sides)]
    assert refusal({"prompt": "three", "chosen": differing[0], "rejected": differing[1]}) == "prompts_differ"
    far = {side: [user("zero"), *turns] for side, turns in sides.items()}
    assert refusal({"prompt": [*before, user("three")], **far}) == "prompts_differ"


def test_what_the_sides_share_after_a_named_prompt_stays_in_their_histories() -> None:
    sides = {side: [user("one"), assistant("two"), user("three"), assistant(side)] for side in ("chosen", "rejected")}
    found = read({"prompt": "one", **sides})
    assert found.prompt == [user("one")]
    assert found.a.messages() == [assistant("two"), user("three"), assistant("chosen")]


def test_later_questions_that_differ_leave_each_side_its_history_in_every_format() -> None:
    sides = {n: [user("q"), assistant(f"first {n}"), user(f"more {n}"), assistant(f"last {n}")] for n in (1, 2)}
    texts = {n: hh.render_messages(side) for n, side in sides.items()}  # type: ignore[arg-type]
    for record in (
        {"chosen": sides[1], "rejected": sides[2]},
        {"prompt": "q", "chosen": sides[1], "rejected": sides[2]},
        {"conversations": [user("q")], "chosen": sides[1], "rejected": sides[2]},
        {"chosen": texts[1], "rejected": texts[2]},
        {"prompt": "", "chosen": texts[1], "rejected": texts[2]},
        {"winner": "model_a", "model_a": "x", "model_b": "y", "conversation_a": sides[1], "conversation_b": sides[2]},
    ):
        found = read(record)
        assert found.prompt == [user("q")]
        assert [found.a.messages(), found.b.messages()] == [sides[1][1:], sides[2][1:]]


def test_content_in_parts_is_text_or_refused() -> None:
    parts = [{"type": "text", "text": "Which ", "image": None}, {"text": "one?"}, " Say."]
    found = read({"prompt": [{"role": "user", "content": parts}], "chosen": "a", "rejected": "b"})
    assert found.prompt == [user("Which one? Say.")]
    for part in (
        {"type": "image", "image": {"url": "x"}},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "x", "image": "data"},
    ):
        with_part = [{"role": "user", "content": [*parts, part]}]
        assert refusal({"prompt": with_part, "chosen": "a", "rejected": "b"}) == "not_text"
    for odd in ([3], [{"type": "text", "text": None}], None, 3):
        record = {"prompt": [{"role": "user", "content": odd}], "chosen": "a", "rejected": "b"}
        assert refusal(record) == "wrong_type"


def test_our_own_records_keep_what_was_shown() -> None:
    record = {
        "format": own.FORMAT, "identity": "i", "dialogue_identity": "d", "source": "s", "tranche": "online",
        "task": "helpful", "purpose": "training", "question": "helpful", "side": "a", "label_kind": "human",
        "rater_kind": "human", "rater": "r", "strength": 2.0, "duration_ms": 1500.0, "prompt": [user("q")],
        "a": {"text": f"{H} a{A} b", "seed": 5.0}, "b": {"text": "c"},
    }  # fmt: skip
    found = read(record)
    assert (found.a.text, found.strength, found.a.seed) == (f"{H} a{A} b", 2, 5)
    assert json.dumps([found.strength, found.a.seed]) == "[2, 5]"
    for field in ("strength", "duration_ms"):
        assert refusal({**record, field: 1.5}) == "wrong_type"
        assert refusal({**record, field: True}) == "wrong_type"
    assert refusal({**record, "strength": 5.0}) == "unknown_value"
