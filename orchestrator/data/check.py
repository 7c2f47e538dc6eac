"""Checks of comparisons for repeats and for texts of evaluations: of a comparison set in a cycle, and of any files.

What is counted is in `orchestrator/data/contamination.py`. `orchestrator check-data` and the stage `check_data` use
this.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from db.split import normalised
from orchestrator.data.comparison_records import records
from orchestrator.data.contamination import CheckedComparison, DataCheck, DataCheckResults, TextIndex
from orchestrator.data.formats import HEAD_RECORDS, detect_or_none, make_parser
from orchestrator.data.formats.reading import RecordFile
from orchestrator.data.formats.records import Refused, load_object
from orchestrator.data.named_files import opened_text
from orchestrator.errors import ImportFileError

OVERLAPS_FILE = "overlaps.jsonl"
SHOWN_LINES = 10
"""Lines of refused records that are named, of each reason the first."""
JSON_SUFFIXES = (".json", ".jsonl", "")
SUFFIXES = ".json, .jsonl, .csv, .tsv and .txt, each plain or as .gz"

# What the public evaluations call the text that is put to a model, in lower case.
TEXT_KEYS = {
    "prompt", "question", "goal", "forbidden_prompt", "instruction", "input", "context", "stem", "sentence", "text",
    "content", "turns", "messages", "query", "behavior",
}  # fmt: skip
# Answers to choose from: single words among them would be found everywhere.
ANSWER_KEYS = {"choices", "options", "targets", "target_scores", "answers", "output", "reference", "answer_info"}


def check_comparison_set(directory: Path, against: list[Path], out: Path) -> DataCheckResults:
    """Check every record of a comparison set against evaluation files; returns the counts.

    Writes `overlaps.jsonl` into `out`: id of the comparison, name of the file, and how ("message": a person's message
    is the text; "run": a message shares 13 words in a row with it). It holds no text.

    Raises:
        ImportFileError: a file can't be read, or holds no text.
    """
    check = DataCheck([read_texts(file) for file in against])
    with (out / OVERLAPS_FILE).open("w", encoding="utf-8") as lines:
        for record in records(directory):
            for file, how in check.add(_of_set(record)):
                lines.write(json.dumps({"id": record["id"], "file": file, "how": how}) + "\n")
    return check.results()


@dataclass(frozen=True)
class RefusedRecord:
    """A record of a file that can't become a comparison: where it stands, and why."""

    line: int
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class FileOfTexts:
    """A file of other texts than comparisons: how many records it has, and how many are different."""

    file: str
    texts: int
    distinct_texts: int
    """After normalisation."""
    distinct_texts_verbatim: int


@dataclass(frozen=True, kw_only=True)
class FileOfComparisons(DataCheckResults):
    """A file of comparisons: the check of those that can be read, and what can't be, by reason."""

    file: str
    refused: Mapping[str, int]
    refused_lines: Mapping[str, tuple[int, ...]]
    """The first lines of each reason."""


@dataclass(frozen=True, kw_only=True)
class SharedOpenings:
    """How many opening messages stand in both of two files."""

    files: tuple[str, str]
    openings: int


def check_file(file: Path, against: list[TextIndex]) -> FileOfTexts | FileOfComparisons:
    """Check a file of comparisons, or of other texts, for repeats; comparisons also against `against`.

    Raises:
        ImportFileError: the file can't be read, is not what its name says, or holds neither comparisons nor texts.
    """
    if not is_comparisons(file):
        verbatim: list[int] = []
        plain: set[int] = set()
        for texts in _records(file):
            verbatim.append(hash(tuple(texts)))
            plain.add(hash(tuple(map(normalised, texts))))
        if not verbatim:
            raise _no_text(file)
        return FileOfTexts(
            file=str(file),
            texts=len(verbatim),
            distinct_texts=len(plain),
            distinct_texts_verbatim=len(set(verbatim)),
        )
    check, refused = DataCheck(against), defaultdict[str, list[int]](list)
    first, num_read = None, 0
    for item in comparisons(file):
        if isinstance(item, RefusedRecord):
            first = first or item
            refused[item.reason].append(item.line)
        else:
            num_read += 1
            check.add(item)
    if first is not None and num_read == 0:
        raise ImportFileError(
            f"{file}: none of its records can be read as a comparison; line {first.line}: {first.reason}, "
            f"{first.detail}. docs/reference/formats.md shows what is read."
        )
    return FileOfComparisons(
        file=str(file),
        refused={reason: len(lines) for reason, lines in sorted(refused.items())},
        refused_lines={reason: tuple(lines[:SHOWN_LINES]) for reason, lines in sorted(refused.items())},
        **vars(check.results()),
    )


def shared_openings(files: list[Path]) -> list[SharedOpenings]:
    """For every two files of comparisons, how many opening messages stand in both, after normalisation."""
    openings: dict[Path, set[int]] = {}
    for file in files:
        if is_comparisons(file):
            openings[file] = {
                hash(normalised(_opening(item))) for item in comparisons(file) if not isinstance(item, RefusedRecord)
            }
    known = list(openings)
    return [
        SharedOpenings(files=(str(a), str(b)), openings=len(openings[a] & openings[b]))
        for number, a in enumerate(known)
        for b in known[number + 1 :]
    ]


def is_comparisons(file: Path) -> bool:
    """Whether the file holds records in one of the formats that can be imported."""
    return _format_of(file) is not None


def _format_of(file: Path) -> str | None:
    """The import format of the first records that are in one; None for a file of other texts."""
    if _suffix(file) not in JSON_SUFFIXES:
        return None
    with RecordFile(file) as opened:
        for raw in islice(opened, HEAD_RECORDS):
            try:
                record = load_object(raw.text, check=False)
            except Refused:
                continue
            if (found := detect_or_none(record)) is not None:
                return found
            if {"chosen", "rejected"} <= record.keys():
                raise ImportFileError(
                    f"{file}, line {raw.line}: chosen is {type(record['chosen']).__name__} and rejected is "
                    f"{type(record['rejected']).__name__}, which fits no known format of comparisons; expected whole "
                    "dialogues, or replies beside a prompt. docs/reference/formats.md shows what is read."
                )
    return None


def comparisons(file: Path) -> Iterator[CheckedComparison | RefusedRecord]:
    """The comparisons of a file in any format that can be imported; those without a choice as if `a` were chosen."""
    parser = make_parser(_format_of(file) or "", file)
    with RecordFile(file) as opened:
        for raw in opened:
            try:
                for item in parser(load_object(raw.text)):
                    if isinstance(item, Refused):
                        yield RefusedRecord(raw.line, item.reason, item.detail)
                        continue
                    better, worse = (item.b, item.a) if item.side == "b" else (item.a, item.b)
                    yield CheckedComparison(
                        id=f"{file.name}:{raw.line}",
                        part=file.name,
                        prompt=item.prompt,
                        better=better.messages(),
                        worse=worse.messages(),
                        rater=item.rater,
                        contestants=(better.contestant, worse.contestant),
                        decided=item.side != "none",
                    )
            except Refused as refusal:
                yield RefusedRecord(raw.line, refusal.reason, refusal.detail)


def read_texts(file: Path) -> TextIndex:
    """The texts of an evaluation file: prompts of comparisons, or the questions of JSON, JSONL, CSV, TSV, plain text.

    Raises:
        ImportFileError: it can't be read, or holds no text.
    """
    index = TextIndex(name_of(file))
    if is_comparisons(file):
        for item in comparisons(file):
            if not isinstance(item, RefusedRecord):
                index.add([message["content"] for message in item.prompt if message["role"] == "user"])
    else:
        for texts in _records(file):
            index.add(texts)
    if index.num_texts == 0:
        raise _no_text(file)
    return index


def name_of(file: Path) -> str:
    """What a file is called in a report: with its folder, since many are a `test.jsonl`."""
    return f"{file.parent.name}/{file.name}" if file.parent.name else file.name


def texts_of(record: Any) -> list[str]:
    """The texts of one record that are put to a model; every string in it where no field is named like one."""
    return _under_keys(record) or [text for text in _strings(record) if text.strip()]


def _records(file: Path) -> Iterator[list[str]]:
    """The texts of each record of a file that is no comparisons; a record without any is passed over."""
    yield from (texts for texts in _all_records(file) if texts)


def _all_records(file: Path) -> Iterator[list[str]]:
    suffix = _suffix(file)
    if suffix in (".csv", ".tsv", ".txt"):
        # The csv module asks for the ends of lines as they are.
        with opened_text(file, newline="") as lines:
            _check_no_json(file, lines)
            if suffix == ".txt":
                yield from ([line.strip()] for line in lines if line.strip())
                return
            for row in csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ","):
                yield texts_of(row)
    elif suffix not in JSON_SUFFIXES:
        raise ImportFileError(f"{file} is named {suffix}; read are {SUFFIXES}. Convert the file, or rename it.")
    else:
        whole = _one_object(file)
        if whole is not None:
            yield from ([text] for text in texts_of(whole))
            return
        with RecordFile(file) as opened:
            for raw in opened:
                try:
                    yield texts_of(json.loads(raw.text))
                except ValueError as error:
                    raise ImportFileError(
                        f"{file}, line {raw.line}: not JSON ({error}); expected one JSON value per line or one JSON "
                        f"array, as the name says. Correct the line, or rename the file: read are {SUFFIXES}."
                    ) from None


def _check_no_json(file: Path, lines: IO[str]) -> None:
    """Refuse a file of JSON records that is named like plain text or a table; its texts would be taken for others."""
    first = next((line for line in lines if line.strip()), "")
    lines.seek(0)
    try:
        record = json.loads(first)
    except ValueError:
        return
    if isinstance(record, dict | list):
        raise ImportFileError(
            f"{file} is named {_suffix(file)}, but its first line is JSON. Rename it to .jsonl to have it read."
        )


def _one_object(file: Path) -> Any:
    """The content of a file that is one JSON object over several lines; None where it is something else."""
    if _suffix(file) != ".json":
        return None
    with opened_text(file) as opened:
        text = opened.read()
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _under_keys(node: Any, named: bool = False) -> list[str]:
    if isinstance(node, str):
        return [node] if named and node.strip() else []
    if isinstance(node, list):
        return [text for item in node for text in _under_keys(item, named)]
    if isinstance(node, dict):
        return [
            text
            for key, value in node.items()
            if str(key).lower() not in ANSWER_KEYS
            for text in _under_keys(value, str(key).lower() in TEXT_KEYS)
        ]
    return []


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for item in node:
            yield from _strings(item)


def _of_set(record: Mapping[str, Any]) -> CheckedComparison:
    return CheckedComparison(
        record["id"], record["split"], record["prompt"], record["better"], record["worse"], record.get("rater")
    )


def _opening(comparison: CheckedComparison) -> str:
    return next((str(m["content"]) for m in comparison.prompt if m["role"] == "user"), "")


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _no_text(file: Path) -> ImportFileError:
    found = "is empty" if file.stat().st_size == 0 else "holds no text"
    return ImportFileError(f"{file} {found}; expected comparisons, JSON, JSONL, CSV, TSV or plain text.")
