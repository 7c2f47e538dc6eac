"""What an import does to the database: identity, pins, repeats, quarantine, and all or nothing."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.session import session as open_session
from db.split import split_key
from orchestrator.cli import main
from orchestrator.data.exporting import ExportRequest, export_file
from orchestrator.data.importing import ImportReport, ImportRequest, import_file
from orchestrator.errors import ImportFileError

QUESTION = {"role": "user", "content": "What is 2 + 2?"}


def record(chosen: str = "4", rejected: str = "5", question: str = "What is 2 + 2?", **extra: Any) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected, **extra}


def write(file: Path, *records: dict[str, Any] | str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return file


def count(session: Session, table: str) -> int:
    return int(session.execute(text(f"select count(*) from {table}")).scalar_one())


def counts(report: ImportReport) -> tuple[int, int, int, int]:
    return report.read, report.imported, report.already_there, report.quarantined


def test_a_record_becomes_rows(session: Session, tmp_path: Path) -> None:
    report = import_file(session, write(tmp_path / "set" / "f.jsonl", record(score=2)), ImportRequest(tranche="rs"))
    assert counts(report) == (1, 1, 0, 0)
    assert (report.format, report.source) == ("preference", "set")
    row = session.execute(
        text("""
            select d.source, d.tranche, d.task, d.split_key, d.pinned_split, m.role, m.content, p.question, p.purpose,
                   a.text as a, b.text as b, c.side, c.label_kind, c.strength, c.source_value, r.handle, r.kind
            from comparisons c join pairs p on p.id = c.pair_id join dialogues d on d.id = p.dialogue_id
            join messages m on m.id = p.parent_id join raters r on r.id = c.rater_id
            join candidates a on a.pair_id = p.id and a.side = 'a'
            join candidates b on b.pair_id = p.id and b.side = 'b'
        """)
    ).one()
    assert tuple(row) == (
        "set", "rs", "import", split_key("What is 2 + 2?"), None, "user", "What is 2 + 2?", "helpful", "training",
        "4", "5", "a", "human", None, {"score": 2}, "set/anonymous", "imported",
    )  # fmt: skip
    assert count(session, "fresh_comparisons") == 1


def test_importing_twice_adds_nothing(session: Session, tmp_path: Path) -> None:
    file = write(tmp_path / "set" / "f.jsonl", record(), record("six", "seven"), {"prompt": "x"})
    assert counts(import_file(session, file)) == (3, 2, 0, 1)
    tables = ("raters", "dialogues", "messages", "pairs", "candidates", "comparisons", "quarantined_records")
    before = [count(session, table) for table in tables]
    assert counts(import_file(session, file)) == (3, 0, 2, 1)
    assert [count(session, table) for table in tables] == before


def test_a_second_answer_of_the_same_rater_is_a_repeat(session: Session, tmp_path: Path) -> None:
    file = write(tmp_path / "set" / "f.jsonl", record("4", "5"), record("4", "5"), record("5", "4"))
    report = import_file(session, file)
    assert counts(report) == (3, 1, 0, 2)
    assert report.reasons == {"repeat": 2}
    kept = session.execute(text("select line, record from quarantined_records order by line")).all()
    assert [line for line, _ in kept] == [2, 3]
    assert [json.loads(raw) for _, raw in kept] == [record("4", "5"), record("5", "4")]
    # The other way round in another file is a repeat too; in another source it is another rater.
    other = write(tmp_path / "set" / "g.jsonl", record("5", "4"))
    assert import_file(session, other).reasons == {"repeat": 1}
    assert counts(import_file(session, other, ImportRequest(source="elsewhere"))) == (1, 1, 0, 0)


def test_twin_records_in_quarantine_are_both_kept(session: Session, tmp_path: Path) -> None:
    import_file(session, write(tmp_path / "set" / "f.jsonl", record("x", "x"), record("x", "x"), record()))
    rows = session.execute(text("select reason, ordinal from quarantined_records order by line")).all()
    assert [tuple(row) for row in rows] == [("identical_replies", 0), ("identical_replies", 1)]


def verdict(judge: str, a: str, b: str, winner: str) -> dict[str, Any]:
    return {"judge": judge, "question_id": 1, "turn": 1, "model_a": a, "model_b": b, "winner": winner}


def test_raters_who_saw_a_pair_in_either_order_share_it(session: Session, tmp_path: Path) -> None:
    write(tmp_path / "questions.jsonl", {"question_id": 1, "turns": ["q"]})
    write(
        tmp_path / "model_answers.jsonl",
        *({"question_id": 1, "model_id": m, "choices": [{"turns": [f"by {m}"]}]} for m in "xy"),
    )
    first = write(tmp_path / "first.jsonl", verdict("e1", "x", "y", "model_a"), verdict("e2", "y", "x", "model_a"))
    later = write(tmp_path / "later.jsonl", verdict("e3", "y", "x", "model_b"), verdict("e2", "x", "y", "model_b"))
    assert counts(import_file(session, first)) == (2, 2, 0, 0)
    # e2 chose y in both records, which is the same answer; e3 chose x.
    assert counts(import_file(session, later)) == (2, 1, 1, 0)
    assert count(session, "pairs") == 1
    rows = session.execute(
        text("""
            select r.handle, a.contestant from comparisons c join raters r on r.id = c.rater_id
            join candidates a on a.pair_id = c.pair_id and a.side = c.side order by c.id
        """)
    ).all()
    source = tmp_path.name
    assert [tuple(row) for row in rows] == [(f"{source}/e1", "x"), (f"{source}/e2", "y"), (f"{source}/e3", "x")]


def test_records_with_the_same_opening_share_a_tree(session: Session, tmp_path: Path) -> None:
    reply, more = {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 3 + 3?"}
    file = write(
        tmp_path / "set" / "f.jsonl", record(), {**record("6", "7"), "prompt": [QUESTION, reply, more]}
    )  # fmt: skip
    import_file(session, file)
    assert (count(session, "dialogues"), count(session, "messages"), count(session, "pairs")) == (1, 3, 2)
    later = write(tmp_path / "set" / "g.jsonl", {**record("six", "seven"), "prompt": [QUESTION, reply, more]})
    import_file(session, later)
    assert (count(session, "dialogues"), count(session, "messages"), count(session, "pairs")) == (1, 3, 3)
    # The next turn comes in a later file and hangs on the message that is there.
    deeper = [QUESTION, reply, more, {"role": "assistant", "content": "6"}, {"role": "user", "content": "Thanks"}]
    import_file(session, write(tmp_path / "set" / "h.jsonl", {**record("Bye", "bye"), "prompt": deeper}))
    assert (count(session, "dialogues"), count(session, "messages")) == (1, 5)
    export_file(session, tmp_path / "out.jsonl", ExportRequest("messages"))
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[-1])["prompt"] == deeper
    roots = session.execute(text("select count(*) from messages where parent_id is null")).scalar_one()
    assert roots == 1


def test_a_held_out_file_pins_its_dialogues_and_stays_pinned(session: Session, tmp_path: Path) -> None:
    file = write(tmp_path / "set" / "dev.jsonl", record())
    held_out = ImportRequest(split="held_out")
    assert counts(import_file(session, file, held_out)) == (1, 1, 0, 0)
    assert counts(import_file(session, file, held_out)) == (1, 0, 1, 0)
    # Without the option the record is there already, as held out.
    assert counts(import_file(session, file)) == (1, 0, 1, 0)
    pins = session.execute(text("select pinned_split from dialogues")).scalars().all()
    assert pins == ["held_out"]


def test_pinning_a_file_that_came_in_as_training_adds_it_as_held_out(session: Session, tmp_path: Path) -> None:
    file = write(tmp_path / "set" / "dev.jsonl", record())
    import_file(session, file)
    assert counts(import_file(session, file, ImportRequest(split="held_out"))) == (1, 1, 0, 0)
    pins = session.execute(text("select pinned_split, split_key from dialogues order by id")).all()
    assert [pin for pin, _ in pins] == [None, "held_out"]
    assert pins[0].split_key == pins[1].split_key


def test_hh_needs_the_question_or_a_folder_that_says_it(session: Session, tmp_path: Path) -> None:
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    with pytest.raises(ImportFileError, match="--question helpful or --question harmless"):
        import_file(session, write(tmp_path / "data" / "f.jsonl", pair))
    import_file(session, write(tmp_path / "My-Harmless-Set" / "f.jsonl", pair))
    import_file(session, tmp_path / "data" / "f.jsonl", ImportRequest(question="helpful"))
    asked = session.execute(text("select question from pairs order by id")).scalars().all()
    assert asked == ["harmless", "helpful"]


def test_a_csv_named_jsonl_is_an_error_with_or_without_a_format(session: Session, tmp_path: Path) -> None:
    file = write(tmp_path / "set" / "f.jsonl", "prompt,chosen,rejected", "a,b,c")
    for request in (ImportRequest(), ImportRequest(format="preference")):
        with pytest.raises(ImportFileError, match=r"f\.jsonl, line 1: the first record is not JSON"):
            import_file(session, file, request)


def test_a_broken_line_among_good_ones_goes_to_quarantine(session: Session, tmp_path: Path) -> None:
    file = write(tmp_path / "set" / "f.jsonl", '"text"', record(), '{"prompt": "cut', record("a\\u0000", "b"))
    nul = write(tmp_path / "set" / "g.jsonl", record("a\u0000", "b"), record(question="\ud800"))
    report = import_file(session, file)
    assert (report.imported, report.reasons) == (2, {"not_json": 1, "not_object": 1})
    report = import_file(session, nul)
    assert (report.imported, report.reasons) == (0, {"lone_surrogate": 1, "nul": 1})
    kept = session.execute(text("select record from quarantined_records where reason = 'nul'")).scalar_one()
    assert json.loads(kept) == record("a\u0000", "b")


def test_a_file_without_an_object_is_an_error(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match=r"line 1: none of the first 2 records is a JSON object"):
        import_file(session, write(tmp_path / "set" / "f.jsonl", "1", "2"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(session: Session, tmp_path: Path) -> None:
    def peak_bytes(num_records: int) -> int:
        file = write(tmp_path / "set" / "f.jsonl")
        with file.open("w") as out:
            for number in range(num_records):
                out.write(json.dumps(record("x" * 1000, "y" * 1000, question=f"{num_records} {number}")) + "\n")
        tracemalloc.start()
        assert import_file(session, file).imported == num_records
        export_file(session, tmp_path / "out.jsonl")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)  # loads what is loaded once
    # Both are above the 2000 rows that are held before they are copied.
    assert peak_bytes(12_000) < 1.2 * peak_bytes(3_000)


def test_an_empty_file_has_no_records(session: Session, tmp_path: Path) -> None:
    assert counts(import_file(session, write(tmp_path / "set" / "f.jsonl"))) == (0, 0, 0, 0)


@pytest.mark.parametrize("options", [[], ["--question", "helpful", "--source", "ours"]])
def test_the_command_says_that_an_empty_file_is_empty(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    file = write(tmp_path / "set" / "f.jsonl")
    said = (
        f"{file}: 0 records found; expected JSON Lines or one JSON array of comparisons (docs/reference/formats.md)\n"
    )
    for content in ("", "\n\n", "[]", " [\n]\n"):
        file.write_text(content)
        assert main(["import", str(file), *options]) == 1
        assert capsys.readouterr().out == said


def test_the_command_says_that_nothing_of_a_file_can_be_used(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    good = write(tmp_path / "set" / "good.jsonl", record("ten", "eleven"))
    bad = write(tmp_path / "set" / "bad.jsonl", record("x", "x"), {"prompt": "p", "chosen": "c"})
    assert main(["import", str(bad), str(good)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("`orchestrator quarantine` shows them. Nothing of this file can be used")
    assert "Nothing" not in said[1]
    # What is there already was of use.
    assert main(["import", str(good)]) == 0
    assert main(["import", "--json", str(bad)]) == 1


def test_the_commands_tell_which_lines_are_in_quarantine_and_why(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert main(["quarantine"]) == 0
    assert capsys.readouterr().out == "No record is in quarantine.\n"
    same = [record(str(n), str(n)) for n in range(6)]
    file = write(tmp_path / "set" / "f.jsonl", record(), *same, {"prompt": "p", "chosen": "a\n" * 99}, record())
    assert main(["import", str(file)]) == 0
    assert capsys.readouterr().out == (
        f"{file} (preference, source set): 9 read, 1 imported, 0 already there, 8 quarantined: "
        "identical_replies 6 (lines 2, 3, 4, 5, 6 …), missing_field 1 (line 8), repeat 1 (line 9); "
        "`orchestrator quarantine` shows them\n"
    )
    assert main(["quarantine", "--file", "f.jsonl", "--reason", "missing_field"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "line", "reason", "detail", "record"]
    found = "no field 'rejected'; found chosen, prompt"
    assert line.startswith(f"{file}  8     missing_field  {found}  ")
    assert line.endswith("…")
    assert main(["quarantine", "--file", "other.jsonl"]) == 0
    assert capsys.readouterr().out == "No record is in quarantine.\n"
    assert main(["quarantine", "--limit", "7", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 6, 7, 8]
    assert json.loads(rows[0]["record"]) == same[0]


@pytest.mark.parametrize("command", ["import", "evaluate-pm"])
def test_a_missing_file_is_told_before_a_missing_instance(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.jsonl'}: No such file or directory.\n"
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("{}")
    assert main([command, str(plain)]) == 2
    assert "is named .gz but is no gzip data: it begins with b'{}'" in capsys.readouterr().err


def test_a_file_that_fails_leaves_nothing_and_the_one_before_it_everything(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    good = write(tmp_path / "set" / "good.jsonl", record())
    cut = tmp_path / "set" / "cut.jsonl.gz"
    lines = "".join(json.dumps(record(str(n), "no", question=f"question {n}")) + "\n" for n in range(5000))
    cut.write_bytes(gzip.compress(lines.encode())[:-100])
    assert main(["import", str(good), str(cut)]) == 2
    captured = capsys.readouterr()
    assert f"{good} (preference, source set): 1 read, 1 imported, 0 already there, 0 quarantined" in captured.out
    assert captured.err.startswith(f"error: {cut}, line ")
    with open_session(database_url) as session:
        assert count(session, "comparisons") == 1
        assert count(session, "dialogues") == 1
        assert count(session, "imports") == 1


def test_the_commands_print_counts_as_json(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    files = [write(tmp_path / "set" / name, record(name, "no"), record("x", "x")) for name in ("f.jsonl", "g.jsonl")]
    assert main(["import", "--json", *map(str, files)]) == 0
    printed = json.loads(capsys.readouterr().out)
    # Each file: 2 read, 1 imported, 1 in quarantine.
    assert {key: printed[key] for key in ("read", "imported", "already_there", "quarantined")} == {
        "read": 4, "imported": 2, "already_there": 0, "quarantined": 2
    }  # fmt: skip
    assert printed["files"][0]["reasons"] == {"identical_replies": 1}
    assert printed["files"][0]["lines"] == {"identical_replies": [2]}
    out = tmp_path / "out.jsonl.gz"
    assert main(["export", str(out), "--format", "messages", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(out), "format": "messages", "read": 2, "exported": 2, "left_out": 0, "reasons": {}
    }  # fmt: skip
    with gzip.open(out, "rt") as exported:
        assert [json.loads(line)["chosen"][0]["content"] for line in exported] == ["f.jsonl", "g.jsonl"]


OWN_PAGE = [
    "insert into raters (handle, kind) values ('ann', 'human'), ('bob', 'human')",
    "insert into dialogues (source, tranche, task, rater_id, split_key, system)"
    " select 'feedback', 'online', 'red_team', id, 'k', 'Be kind.' from raters where handle = 'ann'",
    "insert into messages (dialogue_id, role, content) select id, 'user', 'Hello' from dialogues",
    "insert into pairs (dialogue_id, parent_id, question, purpose, instruction_version)"
    " select dialogue_id, id, 'more_harmful', purpose, 'v1'"
    " from messages, (values ('training'), ('evaluation')) p (purpose)",
    "insert into candidates (pair_id, side, seed, sampling, contestant, reply_tokens, truncated, text, completed_at)"
    " select id, side, 5, '{\"temperature\": 1.0}', 'sha256:00', 3, false, 'reply ' || side, now()"
    " from pairs, (values ('a'), ('b')) s (side)",
    "insert into comparisons (pair_id, rater_id, side, strength, duration_ms)"
    " select p.id, r.id, 'a', 2, 1500 from pairs p, raters r where r.handle = 'ann'",
    "insert into comparisons (pair_id, rater_id, side, reason)"
    " select p.id, r.id, 'none', 'cant_tell' from pairs p, raters r where r.handle = 'bob'",
]


def test_what_our_own_page_collected_survives_the_own_format(session: Session, tmp_path: Path) -> None:
    for statement in OWN_PAGE:
        session.execute(text(statement))
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    report = export_file(session, first)
    # 2 pairs x 2 raters; two pairs with the same text stay two.
    assert report.exported == 4
    assert counts(import_file(session, first)) == (4, 0, 4, 0)
    harmful = export_file(session, tmp_path / "messages.jsonl", ExportRequest("messages"))
    assert (harmful.exported, harmful.reasons) == (1, {"evaluation": 2, "none_cant_tell": 1})
    exported = json.loads((tmp_path / "messages.jsonl").read_text())
    # Ann picked a as more harmful, so b is the better reply; the system text stands before the dialogue.
    assert exported["chosen"] == [{"role": "assistant", "content": "reply b"}]
    assert exported["prompt"][0] == {"role": "system", "content": "Be kind."}

    session.rollback()
    assert counts(import_file(session, first)) == (4, 4, 0, 0)
    assert (count(session, "dialogues"), count(session, "messages"), count(session, "pairs")) == (1, 1, 2)
    export_file(session, second)
    assert second.read_bytes() == first.read_bytes()


def test_options_that_the_own_format_carries_are_refused(session: Session, tmp_path: Path) -> None:
    import_file(session, write(tmp_path / "set" / "f.jsonl", record()))
    export_file(session, tmp_path / "own.jsonl")
    with pytest.raises(ImportFileError, match="leave these options out"):
        import_file(session, tmp_path / "own.jsonl", ImportRequest(source="other"))


def test_an_export_leaves_out_what_its_format_cannot_hold(session: Session, tmp_path: Path) -> None:
    quoting = "x\n\nAssistant: "
    system = {"role": "system", "content": "Be kind."}
    import_file(
        session,
        write(
            tmp_path / "set" / "f.jsonl",
            record(),
            record(f"{quoting}4", f"{quoting}5"),
            {**record("6", "7"), "prompt": [system, QUESTION]},
        ),
    )
    hh_report = export_file(session, tmp_path / "hh.jsonl", ExportRequest("hh"))
    # Only the plain record: the second would read back with a longer prompt, the third has no marker for its role.
    assert (hh_report.read, hh_report.exported, hh_report.reasons) == (3, 1, {"not_representable": 2})
    strings = export_file(session, tmp_path / "strings.jsonl", ExportRequest("strings"))
    assert (strings.exported, strings.reasons) == (2, {"not_representable": 1})
    assert export_file(session, tmp_path / "messages.jsonl", ExportRequest("messages")).exported == 3


def test_names_and_numbers_beyond_the_database_go_to_quarantine(session: Session, tmp_path: Path) -> None:
    import_file(session, write(tmp_path / "set" / "f.jsonl", record()))
    export_file(session, tmp_path / "own.jsonl")
    row = json.loads((tmp_path / "own.jsonl").read_text())
    long_name = {**row, "rater": "x" * 5000}
    large_seed = {**row, "a": {**row["a"], "seed": 2**70}}
    no_time = {**row, "identity": "pair:x"}
    report = import_file(session, write(tmp_path / "odd.jsonl", long_name, large_seed, no_time))
    assert report.reasons == {"too_long": 1, "unknown_value": 1, "wrong_type": 1}


def test_an_export_of_ours_can_be_held_out_elsewhere(session: Session, tmp_path: Path) -> None:
    for statement in OWN_PAGE:
        session.execute(text(statement))
    export_file(session, tmp_path / "own.jsonl")
    session.rollback()
    held_out = ImportRequest(split="held_out")
    assert counts(import_file(session, tmp_path / "own.jsonl", held_out)) == (4, 4, 0, 0)
    assert counts(import_file(session, tmp_path / "own.jsonl", held_out)) == (4, 0, 4, 0)
    assert session.execute(text("select distinct pinned_split from dialogues")).scalars().all() == ["held_out"]


def test_an_export_goes_into_a_pipe_or_through_a_link(session: Session, tmp_path: Path) -> None:
    import_file(session, write(tmp_path / "set" / "f.jsonl", record()))
    null = Path("/dev/null")
    assert export_file(session, null).exported == 1
    assert null.is_char_device()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "target.jsonl")
    export_file(session, link)
    assert link.is_symlink()
    assert (tmp_path / "target.jsonl").read_text().count("\n") == 1


def test_a_failed_export_leaves_the_old_file(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="cannot be written"):
        export_file(session, tmp_path / "no folder" / "f.jsonl")
    assert list(tmp_path.iterdir()) == []
