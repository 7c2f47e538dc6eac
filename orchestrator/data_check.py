"""Checks of comparisons for repeats and for texts of evaluations: of a comparison set in a cycle, and of any files.

What is counted is in `orchestrator/contamination.py`. `orchestrator check-data` and the stage `check_data` use this.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from db.split import normalised
from orchestrator.contamination import CheckedComparison, DataCheck, TextIndex
from orchestrator.errors import ImportFileError
from orchestrator.formats import detect_or_none, make_parser
from orchestrator.formats.reading import RecordFile
from orchestrator.formats.records import Refused, load_object

OVERLAPS_FILE = "overlaps.jsonl"

# What the public evaluations call the text that is put to a model, in lower case.
TEXT_KEYS = {
    "prompt", "question", "goal", "forbidden_prompt", "instruction", "input", "context", "stem", "sentence", "text",
    "content", "turns", "messages", "query", "behavior",
}  # fmt: skip
# Answers to choose from: single words among them would be found everywhere.
ANSWER_KEYS = {"choices", "options", "targets", "target_scores", "answers", "output", "reference", "answer_info"}


def check_comparison_set(directory: Path, against: list[Path], out: Path) -> dict[str, Any]:
    """Check every record of a comparison set against evaluation files; returns the counts.

    Writes `overlaps.jsonl` into `out`: id of the comparison, name of the file, and how ("message": a person's message
    is the text; "run": a message shares 13 words in a row with it). It holds no text.

    Raises:
        ImportFileError: a file can't be read, or holds no text.
    """
    check = DataCheck([read_texts(file) for file in against])
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    with (out / OVERLAPS_FILE).open("w", encoding="utf-8") as lines:
        for shard in manifest["shards"]:
            with (directory / shard["file"]).open(encoding="utf-8", newline="\n") as records:
                for record in map(json.loads, records):
                    for file, how in check.add(_of_set(record)):
                        lines.write(json.dumps({"id": record["id"], "file": file, "how": how}) + "\n")
    return check.result()


def check_file(file: Path, against: list[TextIndex]) -> dict[str, Any]:
    """Check a file of comparisons, or of other texts, for repeats; comparisons also against `against`.

    Raises:
        ImportFileError: the file can't be read, or holds neither comparisons nor texts.
    """
    if not is_comparisons(file):
        verbatim: list[int] = []
        plain: set[int] = set()
        for texts in _records(file):
            verbatim.append(hash(tuple(texts)))
            plain.add(hash(tuple(map(normalised, texts))))
        if not verbatim:
            raise _no_text(file)
        return {
            "file": str(file),
            "texts": len(verbatim),
            "distinct_texts": len(plain),
            "distinct_texts_verbatim": len(set(verbatim)),
        }
    check, refused = DataCheck(against), Counter[str]()
    for item in comparisons(file):
        if isinstance(item, Refused):
            refused[item.reason] += 1
        else:
            check.add(item)
    return {"file": str(file), "refused": dict(sorted(refused.items())), **check.result()}


def shared_openings(files: list[Path]) -> list[dict[str, Any]]:
    """For every two files of comparisons, how many opening messages stand in both, after normalisation."""
    openings: dict[Path, set[int]] = {}
    for file in files:
        if is_comparisons(file):
            openings[file] = {
                hash(normalised(_opening(item))) for item in comparisons(file) if not isinstance(item, Refused)
            }
    known = list(openings)
    return [
        {"files": [str(a), str(b)], "openings": len(openings[a] & openings[b])}
        for number, a in enumerate(known)
        for b in known[number + 1 :]
    ]


def is_comparisons(file: Path) -> bool:
    """Whether the first record is one of the formats that can be imported."""
    if _suffix(file) not in (".json", ".jsonl", ""):
        return False
    try:
        with RecordFile(file) as records:
            return any(detect_or_none(load_object(raw.text, check=False)) for raw in _first(records))
    except Refused:
        return False


def comparisons(file: Path) -> Iterator[CheckedComparison | Refused]:
    """The comparisons of a file in any format that can be imported; those without a choice as if `a` were chosen."""
    parser = None
    with RecordFile(file) as records:
        for raw in records:
            try:
                record = load_object(raw.text)
                if parser is None:
                    parser = make_parser(detect_or_none(record) or "", file)
                for item in parser(record):
                    if isinstance(item, Refused):
                        yield item
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
                yield refusal


def read_texts(file: Path) -> TextIndex:
    """The texts of an evaluation file: prompts of comparisons, or the questions of JSON, JSONL, CSV, TSV, plain text.

    Raises:
        ImportFileError: it can't be read, or holds no text.
    """
    index = TextIndex(name_of(file))
    if is_comparisons(file):
        for item in comparisons(file):
            if not isinstance(item, Refused):
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
    """The texts of each record of a file that is no comparisons."""
    suffix = _suffix(file)
    if suffix in (".csv", ".tsv"):
        with _opened(file) as lines:
            for row in csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ","):
                yield texts_of(row)
    elif suffix == ".txt":
        with _opened(file) as lines:
            yield from ([line.strip()] for line in lines if line.strip())
    else:
        whole = _one_object(file)
        if whole is not None:
            yield from ([text] for text in texts_of(whole))
            return
        with RecordFile(file) as records:
            for raw in records:
                yield texts_of(json.loads(raw.text))


def _one_object(file: Path) -> Any:
    """The content of a file that is one JSON object over several lines; None where it is something else."""
    if _suffix(file) != ".json":
        return None
    with _opened(file) as opened:
        try:
            content = json.load(opened)
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


def _of_set(record: dict[str, Any]) -> CheckedComparison:
    return CheckedComparison(
        record["id"], record["split"], record["prompt"], record["better"], record["worse"], record.get("rater")
    )


def _opening(comparison: CheckedComparison) -> str:
    return next((str(m["content"]) for m in comparison.prompt if m["role"] == "user"), "")


def _first(records: RecordFile) -> Iterator[Any]:
    yield from (raw for raw, _ in zip(records, range(1), strict=False))


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _opened(file: Path) -> Any:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ImportFileError(f"{file}: {error.strerror}.") from None
    data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    try:
        return io.StringIO(data.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ImportFileError(f"{file}: byte {error.start} is not UTF-8. Convert the file.") from None


def _no_text(file: Path) -> ImportFileError:
    return ImportFileError(f"{file} holds no text; expected comparisons, JSON, JSONL, CSV, TSV or plain text.")
