"""Preference pairs from files, written as a comparison set that the training job reads: skills and PMP pairs.

They are not raters' comparisons of this instance, so they never enter the database.
Read next: `orchestrator/data/skills.py`, `orchestrator/data/ranked_answers.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from db.split import is_held_out, split_key
from models.runtime.results import part_to_json
from orchestrator.config import OrientationSection
from orchestrator.data.check import name_of
from orchestrator.data.comparison_records import oriented
from orchestrator.data.comparison_set import ComparisonSetResults
from orchestrator.data.formats import detect, detect_or_none, make_parser
from orchestrator.data.formats.reading import RecordFile
from orchestrator.data.formats.records import ImportedComparison, Parser, RawRecord, Refused, load_object
from orchestrator.errors import ConfigError, ImportFileError

MANIFEST_FORMAT = 1
SHARD = "shards/pairs.jsonl"


class PairRecord(TypedDict):
    """A preference pair from a file, as it stands in a comparison set before it is split."""

    id: str
    source: str
    tranche: NotRequired[str]
    question: str
    prompt: list[Any]
    better: list[Any]
    worse: list[Any]


def write_pair_set(records: Iterable[PairRecord], held_out_fraction: float, out: Path) -> ComparisonSetResults:
    """Write the records as a comparison set; returns its counts.

    Split by the same hash of the opening message as comparisons, so that a dialogue that is also among them falls on
    the same side.

    Raises:
        ConfigError: there is no training record.
    """
    counts: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    digest = hashlib.sha256()
    (out / SHARD).parent.mkdir(parents=True)
    with (out / SHARD).open("wb") as file:
        for record in records:
            opening = next(message["content"] for message in record["prompt"] if message["role"] == "user")
            key = split_key(opening)
            split = "held_out" if is_held_out(key, held_out_fraction) else "train"
            line = json.dumps({**record, "split": split, "split_key": key}, ensure_ascii=False) + "\n"
            file.write(line.encode("utf-8", "surrogatepass"))
            digest.update(line.encode("utf-8", "surrogatepass"))
            counts[split] += 1
            sources[record["source"]] += 1
    if not counts["train"]:
        raise ConfigError("The files give no training pair. Name others, or leave the setting out.")
    results = ComparisonSetResults(
        format=MANIFEST_FORMAT,
        num_comparisons=counts.total(),
        num_train=counts["train"],
        num_held_out=counts["held_out"],
        by_source=dict(sorted(sources.items())),
    )
    shards = [{"file": SHARD, "sha256": digest.hexdigest(), "records": counts.total()}]
    manifest = {**part_to_json(results), "shards": shards}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return results


def comparisons_in(record: RawRecord, where: str, file: Path) -> Iterator[ImportedComparison]:
    """The decided comparisons of a record in any format that can be imported; refused ones and ties are passed over.

    Raises:
        ConfigError: the record is in no known format.
    """
    try:
        parse = make_parser(detect(record, where), file)
        for item in parse(record):
            if not isinstance(item, Refused) and item.side != "none":
                yield item
    except Refused:
        return
    except ImportFileError as error:
        raise ConfigError(f"{where}: {error}") from None


@dataclass(frozen=True)
class LeftOut:
    """A record, or a part of it, that gives no pair: a reason code, and what was found."""

    reason: str
    detail: str


def pairs_of_file(
    file: Path, source: str, question: str, *, undecided: bool = False
) -> Iterator[tuple[int, dict[str, Any] | LeftOut]]:
    """The pairs of a file in any format that can be imported, as records of a comparison set, each with its line.

    Args:
        source: What the records name as their source; their ids begin with it.
        question: What is asked of the pairs, where the records don't say it.
        undecided: Whether a comparison without a choice is a pair too, the second reply as the better one.

    Raises:
        ImportFileError: the file can't be read, or is in no known format.
    """
    parsers: dict[str, Parser] = {}
    with RecordFile(file) as opened:
        for raw in opened:
            try:
                record = load_object(raw.text)
                # One that fits no format, or several, is read as the first was: what it lacks is said by that reader.
                if (name := detect_or_none(record) or next(iter(parsers), None)) is None:
                    name = detect(record, f"{file}, line {raw.line}")
                if name not in parsers:
                    parsers[name] = make_parser(name, file)
                items = list(parsers[name](record))
            except Refused as refused:
                items = [refused]
            for number, item in enumerate(items):
                id = f"{source}:{raw.line}" + (f":{number}" if len(items) > 1 else "")
                if isinstance(item, Refused):
                    yield raw.line, LeftOut(item.reason, item.detail)
                elif item.side == "none" and not undecided:
                    yield raw.line, LeftOut("none_" + (item.reason or "tie"), "neither reply is the better one")
                else:
                    yield raw.line, _pair_of(item, id, source, item.question or question)


def _pair_of(item: ImportedComparison, id: str, source: str, question: str) -> dict[str, Any]:
    prompt, a, b = list(item.prompt), list(item.a.messages()), list(item.b.messages())
    return oriented(id=id, source=source, question=question, side=item.side, prompt=prompt, a=a, b=b)


def write_orientation_pairs(file: Path, out: Path) -> Mapping[str, object]:
    """Write `pairs.jsonl` for the orientation check: records as in a comparison set, from prompt/chosen/rejected.

    Raises:
        ConfigError: a line is no comparison of two different replies, or there is none; the file can't be read.
    """
    num_pairs = 0
    try:
        with (out / "pairs.jsonl").open("w", encoding="utf-8") as lines:
            for line, pair in pairs_of_file(file, "orientation", "helpful", undecided=True):
                if isinstance(pair, LeftOut):
                    raise ConfigError(
                        f"{file}, line {line} is no orientation pair: {pair.reason}: {pair.detail}; expected a "
                        "comparison of two different replies. Correct the file."
                    )
                num_pairs += 1
                lines.write(json.dumps(pair | {"id": f"{file.name}:{line}"}, ensure_ascii=False) + "\n")
    except ImportFileError as error:
        raise ConfigError(f"{error} The configuration names it.") from None
    if num_pairs == 0:
        raise ConfigError(f"{file} holds no pairs; the orientation check needs at least one.")
    return {"num_pairs": num_pairs, "file": file.name}


def write_pairs(file: Path, out: Path, question: str | None = None) -> Counter[str]:
    """Append the decided comparisons of a file to pairs.jsonl, the file as their source; counts what was left out.

    Raises:
        ImportFileError: the file is in no known format, or holds no pair.
    """
    left_out: Counter[str] = Counter()
    folder = file.absolute().parent.name.lower()
    default = question or ("harmless" if "harmless" in folder else "helpful")
    num_pairs = 0
    with out.open("a", encoding="utf-8") as lines:
        for _, pair in pairs_of_file(file, name_of(file), default):
            if isinstance(pair, LeftOut):
                left_out[pair.reason] += 1
                continue
            num_pairs += 1
            # Benchmarks ask many raters about one prompt: those comparisons are not independent.
            opening = next((message["content"] for message in pair["prompt"] if message["role"] == "user"), None)
            if opening is not None:
                pair["split_key"] = split_key(opening)
            lines.write(json.dumps(pair, ensure_ascii=False) + "\n")
    if num_pairs == 0:
        raise ImportFileError(f"{file} holds no pair of which one side is better; expected comparisons.")
    return left_out


# English common sense: 20 helpful and 20 harmless pairs, the better reply being the longer in half of them.
SHIPPED = Path(__file__).with_name("orientation.jsonl")


def orientation_pairs(section: OrientationSection) -> Path | None:
    """The pairs to check with: the configuration's own, else the shipped ones, or None where those are off."""
    if section.file is not None:
        return Path(section.file)
    return SHIPPED if section.shipped else None
