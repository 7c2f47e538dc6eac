"""What is exported and imported into an empty database is the same set, for real sets and for odd text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from orchestrator.data.exporting import ExportRequest, export_file
from orchestrator.data.formats import EXPORTS, hh, reads_back
from orchestrator.data.formats.records import Message, Side, holds_dialogue
from orchestrator.data.importing import ImportReport, ImportRequest, import_file

SETS = {
    "hh_harmless_base/dev.jsonl.gz": ImportRequest(split="held_out"),
    "hh_helpful_single_turn/train_a.jsonl.gz": ImportRequest(tranche="base"),
    "dpo_en_demo/dpo_en_demo.json.gz": ImportRequest(),
    "mt_bench_human/human_judgments_train.jsonl": ImportRequest(),
    "mt_bench_human/gpt4_pair_judgments.jsonl": ImportRequest(),
    "tulu1_human_eval/train.jsonl": ImportRequest(),
    "oasst_trees_en100/trees.jsonl.gz": ImportRequest(),
}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def empty(session: Session) -> None:
    """Roll the test's session back to an empty database."""
    session.rollback()
    assert session.execute(text("select count(*) from comparisons")).scalar_one() == 0


@pytest.mark.slow
def test_all_real_sets_survive_the_own_format(session: Session, data_dir: Path, tmp_path: Path) -> None:
    num_imported = sum(import_file(session, data_dir / name, request).imported for name, request in SETS.items())
    first = export_file(session, tmp_path / "first.jsonl")
    assert first.exported == num_imported
    assert import_file(session, tmp_path / "first.jsonl").already_there == num_imported

    empty(session)
    again = import_file(session, tmp_path / "first.jsonl")
    assert (again.imported, again.quarantined) == (num_imported, 0)
    export_file(session, tmp_path / "second.jsonl")
    assert (tmp_path / "second.jsonl").read_bytes() == (tmp_path / "first.jsonl").read_bytes()


@pytest.mark.parametrize("format_name", ["hh", "strings", "messages"])
def test_a_real_set_survives_the_public_formats(
    session: Session, data_dir: Path, tmp_path: Path, format_name: str
) -> None:
    import_file(session, data_dir / "hh_harmless_base/dev.jsonl.gz")
    first = export_file(session, tmp_path / "first.jsonl", ExportRequest(format_name))
    assert first.read == 353
    assert first.exported == 353

    empty(session)
    again = import_file(session, tmp_path / "first.jsonl", ImportRequest(source="copy", question="harmless"))
    assert (again.imported, again.quarantined) == (353, 0)
    export_file(session, tmp_path / "second.jsonl", ExportRequest(format_name))
    assert lines(tmp_path / "second.jsonl") == lines(tmp_path / "first.jsonl")


def test_hh_export_gives_the_bytes_of_the_public_file(session: Session, data_dir: Path, tmp_path: Path) -> None:
    name = data_dir / "hh_harmless_base/train.jsonl.gz"
    import_file(session, name)
    export_file(session, tmp_path / "hh.jsonl", ExportRequest("hh"))
    original = [json.loads(line) for line in gzip.decompress(name.read_bytes()).splitlines()]
    exported = lines(tmp_path / "hh.jsonl")
    # Replies that are empty stand without the space after the marker in the public file.
    assert [{k: v.strip() for k, v in r.items()} for r in exported] == [
        {k: v.strip() for k, v in r.items()} for r in original
    ]


# Texts that look like the formats' own marks, beside everything that Unicode and Postgres can hold.
TRICKY = st.sampled_from(
    ["", " ", "\n", "\n\n", hh.HUMAN, hh.ASSISTANT, "\n\nHuman: hi\n\nAssistant: ho", "Assistant:", "\\N", "\\.", "\\",
     "\t", "\r\n", "\u2028", "\ufeff", "\u0000"[1:], "'; drop table raters; --", "{}", "null", "é", "e\u0301", "😀"]
)  # fmt: skip
TEXT = st.one_of(
    TRICKY,
    st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=20),
    st.lists(TRICKY, max_size=4).map("".join),
)


@st.composite
def dialogues(draw: st.DrawFn) -> tuple[list[Message], Side, Side]:
    """A prompt that ends with a user message, and two sides that differ."""
    prompt: list[Message] = []
    if draw(st.booleans()):
        prompt.append({"role": "system", "content": draw(TEXT)})
    for _ in range(draw(st.integers(0, 2))):
        prompt.append({"role": "user", "content": draw(TEXT)})
        prompt.append({"role": "assistant", "content": draw(TEXT)})
    prompt.append({"role": "user", "content": draw(TEXT)})
    better, worse = draw(st.lists(TEXT, min_size=2, max_size=2, unique=True))
    return prompt, Side(better), Side(worse)


@given(dialogues())
@settings(max_examples=300, deadline=None, derandomize=True)
@example(([{"role": "user", "content": "a"}], Side(f"b{hh.ASSISTANT} c"), Side(f"b{hh.ASSISTANT} d")))
def test_messages_hold_every_dialogue_and_no_format_changes_one_in_silence(
    dialogue: tuple[list[Message], Side, Side],
) -> None:
    prompt, better, worse = dialogue
    for name in ("hh", "strings", "messages"):
        render = EXPORTS[name][1]
        assert render is not None
        record = render(prompt, better, worse)
        if name == "messages":
            assert record is not None
            # Replies that are dialogues themselves are not read as replies, so such a record is left out.
            dialogues = any(holds_dialogue(side.text) for side in (better, worse))
            assert reads_back(name, record, prompt, better, worse) or dialogues
        elif record is not None and reads_back(name, json.loads(json.dumps(record)), prompt, better, worse):
            assert all(message["role"] != "system" for message in prompt) or name == "messages"


def test_hh_leaves_out_what_its_markers_would_change() -> None:
    question: list[Message] = [{"role": "user", "content": "a"}]
    quoting = Side(f"b{hh.ASSISTANT} c"), Side(f"b{hh.ASSISTANT} d")
    # chosen "…Assistant: b\n\nAssistant: c", rejected "…Assistant: b\n\nAssistant: d": the shared beginning now ends
    # after b, so that it would be read as part of the prompt.
    record = hh.render(question, *quoting)
    assert record is not None
    assert not reads_back("hh", record, question, *quoting)
    plain = Side("b"), Side(f"c{hh.HUMAN} d")
    record = hh.render(question, *plain)
    assert record is not None
    assert reads_back("hh", record, question, *plain)


@given(st.lists(dialogues(), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_text_survives_database_and_files(
    session: Session, tmp_path: Path, records: list[tuple[list[Message], Side, Side]]
) -> None:
    empty(session)
    source = write(
        tmp_path / "odd.jsonl",
        [{"prompt": p, "chosen": a.messages(), "rejected": b.messages()} for p, a, b in records],
    )
    report = import_file(session, source)
    assert report.imported + report.quarantined == len(records)
    assert set(report.reasons) <= {"repeat", "malformed_dialogue"}
    records = [(p, a, b) for p, a, b in records if not holds_dialogue(a.text) and not holds_dialogue(b.text)]

    expected = {}
    for prompt, better, worse in records:
        key = json.dumps([prompt, sorted([better.text, worse.text])])
        # The first comparison of a pair counts; a second by the same (anonymous) rater is a repeat.
        expected.setdefault(key, (prompt, better.text, worse.text))
    assert report.imported == len(expected)

    def content(file: Path) -> list[tuple[list[Message], str, str]]:
        return [(r["prompt"], r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in lines_exactly(file)]

    export_file(session, tmp_path / "messages.jsonl", ExportRequest("messages"))
    assert content(tmp_path / "messages.jsonl") == list(expected.values())
    export_file(session, tmp_path / "own.jsonl")

    empty(session)
    again: ImportReport = import_file(session, tmp_path / "own.jsonl")
    assert (again.imported, again.quarantined) == (len(expected), 0)
    export_file(session, tmp_path / "own2.jsonl")
    assert (tmp_path / "own2.jsonl").read_bytes() == (tmp_path / "own.jsonl").read_bytes()


def lines_exactly(file: Path) -> list[dict[str, Any]]:
    """Records split at LF alone: texts may hold other line separators."""
    return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
