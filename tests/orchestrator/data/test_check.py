"""Repeats and contamination: hand-made comparisons first, then the real sets with the figures of their README."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db.split import normalised
from orchestrator import cli
from orchestrator.config import ComparisonsSection
from orchestrator.data import freeze
from orchestrator.data.check import check_comparison_set, check_file, read_texts, shared_openings, texts_of
from orchestrator.data.contamination import (
    CheckedComparison,
    DataCheck,
    DataCheckResults,
    TextIndex,
    fingerprint,
    run_hashes,
)
from orchestrator.data.importing import ImportRequest, import_file
from orchestrator.errors import ImportFileError
from tests.db.rows import add_cycle

RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"
# Ten times the comparisons may take this many times as long: linear, with room for a busy machine.
LINEAR_TOLERANCE = 25.0


def comparison(
    number: int, asked: str, better: str, worse: str, part: str = "train", **fields: Any
) -> CheckedComparison:
    def reply(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return CheckedComparison(
        str(number), part, [{"role": "user", "content": asked}], reply(better), reply(worse), **fields
    )


def checked(*comparisons: CheckedComparison, against: tuple[TextIndex, ...] = ()) -> DataCheckResults:
    check = DataCheck(against)
    for one in comparisons:
        check.add(one)
    return check.results()


def index(*texts: str) -> TextIndex:
    made = TextIndex("evaluation")
    for text in texts:
        made.add([text])
    return made


def test_runs_of_thirteen_words_are_equal_where_the_words_are_and_nowhere_else():
    words = RUN.split()
    assert len(words) == 13
    assert run_hashes(words[:12]) == ()
    (run,) = run_hashes(words)
    assert run_hashes(["zero", *words, "fourteen"])[1] == run
    assert len(run_hashes(["zero", *words, "fourteen"])) == 3
    # The same words in another order are another run.
    assert run_hashes(words[::-1]) != (run,)
    assert fingerprint("One, two; THREE").whole == fingerprint("one two three").whole


def test_repeats_are_counted_by_prompt_opening_vote_and_contradiction():
    found = checked(
        comparison(1, "Name a river.", "the Rhine", "the moon", rater="7"),
        comparison(2, "name a river", "the Rhine", "the moon", rater="7"),  # the same opening, another text
        comparison(3, "Name a river.", "the Rhine", "the moon", rater="8"),
        comparison(4, "Name a river.", "the moon", "the Rhine", rater="7"),  # the other way round, by the same rater
        comparison(5, "Name a hill.", "no", "yes", part="held_out"),
        comparison(6, "Name a river!", "x", "y", part="held_out"),
        comparison(7, "NAME A HILL", "x", "y", part="held_out"),
    )
    assert (found.comparisons, found.prompts, found.repeated_prompts) == (7, 5, 1)
    # As they are written only "Name a river." stands there again.
    assert (found.openings, found.repeated_openings, found.repeated_openings_verbatim) == (2, 2, 1)
    assert found.openings_in_several_parts == 1
    assert found.repeated_votes == 1
    assert found.contradicted == 1


def test_an_undecided_comparison_contradicts_nothing():
    both = comparison(1, "a", "b", "c"), comparison(2, "a", "c", "b", decided=False)
    assert checked(*both).contradicted == 0


def test_a_text_is_met_as_a_whole_message_of_a_person_or_as_a_run():
    texts = index("What is a fjord?", f"Count: {RUN}!", "not here")
    found = checked(
        comparison(1, "what is a FJORD", "a bay", "a car"),
        comparison(2, "Hello", f"Surely: {RUN.upper()} fourteen", "no"),
        comparison(3, "Hello", "What is a fjord?", "no"),  # a short text in a reply is no copy of the question
        comparison(4, f"zero {RUN}", "a", "b", part="held_out"),
        comparison(5, f"zero {RUN.replace('seven', 'sieben')}", "a", "b"),
        against=(texts,),
    )
    (overlap,) = found.against
    assert (overlap.texts, overlap.texts_met) == (3, 2)
    assert (overlap.comparisons, overlap.by_part) == (3, {"held_out": 1, "train": 2})
    assert (overlap.prompts, overlap.in_prompt, overlap.whole_message) == (2, 2, 1)
    assert overlap.examples == ("1", "2", "4")


def test_no_comparisons_are_counted_as_none():
    found = checked()
    assert (found.comparisons, found.prompts, found.openings, found.openings_in_several_parts) == (0,) * 4


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        ({"question": {"stem": "A", "choices": [{"text": "B", "label": "A"}]}, "answerKey": "A"}, ["A"]),
        ({"instruction": "A", "instances": [{"input": "B", "output": "C"}]}, ["A", "B"]),
        ({"turns": [{"content": "A"}], "cluster": "x"}, ["A"]),
        ({"turns": ["A", "B"]}, ["A", "B"]),
        ({"Question": "A", "Best Answer": "B"}, ["A"]),
        ({"topic": {"sub": ["A", "B"]}}, ["A", "B"]),
    ],
)
def test_the_texts_of_a_record_are_its_questions(record, texts):
    assert texts_of(record) == texts


def test_files_of_every_kind_give_their_texts(tmp_path: Path):
    (tmp_path / "a.csv").write_text("goal,target\nWhat?,x\nWhy?,y\n")
    (tmp_path / "b.tsv").write_text("sentid\tsentence\n1\tWhat?\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"What?\n\nWhy?\n"))
    (tmp_path / "d.json").write_text(json.dumps({"topic": {"sub": ["What?", "Why?"]}}, indent=1))
    (tmp_path / "e.jsonl").write_text('{"prompt": "What?"}\n')
    (tmp_path / "f.json").write_text(json.dumps([{"prompt": "What?"}, {"prompt": "Why?"}]))
    (tmp_path / "g.jsonl").write_text('{"prompt": "What?", "chosen": "a", "rejected": "b"}\n')
    numbers = {path.name: read_texts(path).num_texts for path in tmp_path.iterdir()}
    assert numbers == {
        "a.csv": 2, "b.tsv": 1, "c.txt.gz": 2, "d.json": 2, "e.jsonl": 1, "f.json": 2, "g.jsonl": 1,
    }  # fmt: skip
    for path in tmp_path.iterdir():
        assert read_texts(path).meets(fingerprint("what"), by_person=True) == ("message", 0), path


def test_a_file_without_text_or_that_is_not_there_is_one_line(tmp_path: Path, capsys):
    (tmp_path / "empty.csv").write_text("goal\n")
    with pytest.raises(ImportFileError, match=r"empty.csv holds no text; expected"):
        read_texts(tmp_path / "empty.csv")
    assert cli.main(["check-data", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err


GOOD = '{"prompt": "Name a river.", "chosen": "the Rhine", "rejected": "the moon"}\n'


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", GOOD, "is named .txt, but its first line is JSON. Rename it to .jsonl"),
        ("a.csv", GOOD, "is named .csv, but its first line is JSON. Rename it to .jsonl"),
        ("a.md", "Name a river.\n", "is named .md; read are .json, .jsonl, .csv, .tsv and .txt"),
        ("a.jsonl", "goal,target\nWhat?,x\n", "line 1: not JSON"),
        ("a.jsonl", '{"prompt": "What?"}\nWhy?\n', "line 2: not JSON"),
        ("a.json", "Name a river.\n", "line 1: not JSON"),
        ("a.jsonl.gz", GOOD, "is named .gz but is no gzip data: it begins with b'{\"'"),
        ("a.txt.gz", "", "is named .gz but is no gzip data: it is empty"),
        ("a.jsonl", "", "is empty; expected comparisons, JSON"),
        ("a.jsonl", "{}\n[]\n", "holds no text; expected comparisons"),
        (
            "a.jsonl",
            '{"chosen": "x", "rejected": 3}\n',
            "line 1: chosen is str and rejected is int, which fits no",
        ),
        (
            "a.jsonl",
            '{"prompt": "x", "chosen": "y", "rejected": "y"}\n' * 2,
            "none of its records can be read as a comparison; line 1: identical_replies, both sides are the same text",
        ),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_not_called_clean(tmp_path, capsys, name, content, says):
    (tmp_path / name).write_text(content)
    assert cli.main(["check-data", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path / name}")
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_damaged_gzip_of_plain_text_is_one_line(tmp_path: Path, capsys):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"What?\n" * 100)[:20])
    assert cli.main(["check-data", str(tmp_path / "a.txt.gz")]) == 2
    assert "the gzip data is damaged" in capsys.readouterr().err


def test_refused_records_are_named_by_line_and_a_broken_first_one_hides_no_format(tmp_path: Path, capsys):
    same = '{"prompt": "x", "chosen": "y", "rejected": "y"}\n'
    (tmp_path / "a.jsonl").write_text("cut{\n" + GOOD + same * 12 + '{"prompt": "x", "chosen": "y"}\n')
    assert cli.main(["check-data", str(tmp_path / "a.jsonl")]) == 0
    # Line 1 is no JSON, 2 is good, 3 to 14 are the same twice, 15 has no other side.
    assert (
        "1 comparisons, refused: identical_replies 12 (lines 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 …), "
        "missing_field 1 (line 15), not_json 1 (line 1)"
    ) in capsys.readouterr().out


def test_cost_grows_linearly():
    texts = index(*(f"{number} {RUN}" for number in range(100)))

    def seconds(count: int) -> float:
        """The least of three times: what else the machine does, and the collector of garbage, only add to one."""
        records = [
            comparison(n, f"question {n} about many different words", "b " * 50, "c " * 50) for n in range(count)
        ]
        times = []
        for _ in range(3):
            started_s = time.thread_time()
            checked(*records, against=(texts,))
            times.append(time.thread_time() - started_s)
        return min(times)

    seconds(100)
    # Ten times as many: 10 where the cost is linear, 100 where it is quadratic.
    assert seconds(4000) < LINEAR_TOLERANCE * seconds(400)


# Figures of $ORCHESTRATOR_DATA/README.md from here on.


def test_hh_helpful_has_the_documented_repeats(data_dir: Path):
    files = [data_dir / "hh_helpful_single_turn" / f"{name}.jsonl.gz" for name in ("train_a", "train_b", "dev")]
    reports = [check_file(file, []) for file in files]
    # "3 records have chosen == rejected"
    assert sum(report.refused.get("identical_replies", 0) for report in reports) == 3
    # "25 prompts of dev also occur in train"
    with_dev = [two.openings for two in shared_openings(files) if "dev" in two.files[1]]
    assert sum(with_dev) == 25


def test_hh_harmless_has_the_documented_repeats(data_dir: Path):
    files = [data_dir / "hh_harmless_base" / f"{name}.jsonl.gz" for name in ("train", "dev")]
    # "92 first prompts occur in more than one record", as they are written: 78 in train and 14 in dev, none in both.
    assert [check_file(file, []).repeated_openings_verbatim for file in files] == [78, 14]
    assert shared_openings(files)[0].openings == 0


def test_other_sets_have_the_documented_repeats(data_dir: Path):
    # "1 exact-same (judge, question, pair, turn) vote occurs twice in train"
    assert check_file(data_dir / "mt_bench_human/human_judgments_train.jsonl", []).repeated_votes == 1
    # "2,834 repeated prompts"
    labels = check_file(data_dir / "eval_truthfulqa/answer_truth_labels.jsonl.gz", [])
    assert (labels.texts, labels.texts - labels.distinct_texts_verbatim) == (15373, 2834)


def test_contamination_between_public_sets_is_found(data_dir: Path):
    names = ("prompts_general/self_instruct_user_oriented.jsonl", "eval_lambada/lambada_test.jsonl.gz")
    against = [read_texts(data_dir / name) for name in names]
    assert [one.num_texts for one in against] == [252, 3638]
    tulu = {found.file: found for found in check_file(data_dir / "tulu1_human_eval/train.jsonl", against).against}
    # "Many of the Tulu prompts are these with the input appended"; of LAMBADA's novels there is nothing.
    assert tulu[names[0]].prompts == 112
    assert tulu[names[0]].whole_message < tulu[names[0]].comparisons == 386
    assert tulu[names[1]].comparisons == 0


def test_no_opening_message_of_a_real_set_is_in_both_parts(engine: Engine, data_dir: Path, tmp_path: Path):
    """The split by conversation, on dialogues of several turns and several records; looked at without our own check."""
    with Session(engine) as session, session.begin():
        import_file(session, data_dir / "hh_harmless_base/train.jsonl.gz")
        import_file(session, data_dir / "hh_harmless_base/dev.jsonl.gz", ImportRequest(split="held_out"))
        freeze_id = freeze.freeze(session, add_cycle(session).id).id
    directory = tmp_path / "set"
    directory.mkdir()
    section = ComparisonsSection(held_out_fraction=0.2)
    counts = freeze.build_comparison_set(engine, freeze_id, section, None, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    openings: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for shard in manifest["shards"]:
        with (directory / shard["file"]).open(newline="\n") as lines:
            for record in map(json.loads, lines):
                openings[record["split"]].add(normalised(record["prompt"][0]["content"]))
    assert counts.num_train > 900
    assert counts.num_held_out > 353 + 150
    assert openings["train"] & openings["held_out"] == set()

    found = check_comparison_set(directory, [data_dir / "hh_harmless_base/dev.jsonl.gz"], tmp_path)
    assert found.openings_in_several_parts == 0
    assert found.comparisons == counts.num_comparisons == 1281 + 353
    (overlap,) = found.against
    # Every held-out record of the file is found, and the ids are of comparisons of the set; no text is written.
    assert overlap.by_part["held_out"] >= 353
    lines = [json.loads(line) for line in (tmp_path / "overlaps.jsonl").read_text().splitlines()]
    assert len(lines) == overlap.comparisons
    assert set(lines[0]) == {"id", "file", "how"}


def test_the_command_tells_it_in_words_and_in_json(data_dir: Path, capsys):
    folder = data_dir / "hh_helpful_single_turn"
    files = [str(folder / "train_b.jsonl.gz"), str(folder / "dev.jsonl.gz")]
    assert cli.main(["check-data", *files, "--against", str(data_dir / "llmbar/natural.json")]) == 0
    printed = capsys.readouterr().out
    assert "refused: identical_replies 2 (lines " in printed
    assert "8 opening messages stand in both" in printed
    assert "llmbar/natural.json: 0 comparisons" in printed
    assert cli.main(["check-data", "--json", files[1]]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["comparisons"] == 2781
