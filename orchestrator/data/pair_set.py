"""Preference pairs from files, written as a comparison set that the training job reads: skills and PMP pairs.

They are not raters' comparisons of this instance, so they never enter the database.
Read next: `orchestrator/data/skills.py`, `orchestrator/data/ranked_answers.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from db.split import is_held_out, split_key
from orchestrator.config import OrientationSection
from orchestrator.data.check import name_of
from orchestrator.data.comparison_records import oriented
from orchestrator.data.formats import detect, make_parser
from orchestrator.data.formats.reading import RecordFile
from orchestrator.data.formats.records import ImportedComparison, Refused, load_object
from orchestrator.errors import ConfigError, ImportFileError

MANIFEST_FORMAT = 1
SHARD = "shards/pairs.jsonl"


def write_pair_set(records: Iterable[dict[str, Any]], held_out_fraction: float, out: Path) -> dict[str, Any]:
    """Write records {id, source, question, prompt, better, worse} as a comparison set; returns its counts.

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
            line = json.dumps(record | {"split": split, "split_key": key}, ensure_ascii=False) + "\n"
            file.write(line.encode("utf-8", "surrogatepass"))
            digest.update(line.encode("utf-8", "surrogatepass"))
            counts[split] += 1
            sources[record["source"]] += 1
    if not counts["train"]:
        raise ConfigError("The files give no training pair. Name others, or leave the setting out.")
    manifest = {
        "format": MANIFEST_FORMAT,
        "num_comparisons": counts.total(),
        "num_train": counts["train"],
        "num_held_out": counts["held_out"],
        "by_source": dict(sorted(sources.items())),
        "excluded": {},
        "shards": [{"file": SHARD, "sha256": digest.hexdigest(), "records": counts.total()}],
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {key: value for key, value in manifest.items() if key != "shards"}


def objects_of(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, each with where it stands.

    Raises:
        ConfigError: the file can't be read, or a record is no object.
    """
    try:
        with RecordFile(file) as records:
            for raw in records:
                where = f"{file}, line {raw.line}"
                try:
                    yield where, load_object(raw.text)
                except Refused as refused:
                    raise ConfigError(f"{where}: {refused}. Correct the file.") from None
    except (ImportFileError, OSError) as error:
        raise ConfigError(f"{file} can't be read: {error}. The configuration names it.") from None


def comparisons_in(record: dict[str, Any], where: str, file: Path) -> Iterator[ImportedComparison]:
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


def write_orientation_pairs(file: Path, out: Path) -> dict[str, Any]:
    """Write `pairs.jsonl` for the orientation check: records as in a comparison set, from prompt/chosen/rejected.

    Raises:
        ConfigError: a line is no comparison of two different replies, or there is none.
    """
    from orchestrator.data.formats import detect, make_parser
    from orchestrator.data.formats.reading import RecordFile
    from orchestrator.data.formats.records import Refused, load_object

    num_pairs = 0
    with (out / "pairs.jsonl").open("w", encoding="utf-8") as lines, RecordFile(file) as records:
        for raw in records:
            where = f"{file}, line {raw.line}"
            try:
                record = load_object(raw.text)
                for item in make_parser(detect(record, where), file)(record):
                    if isinstance(item, Refused):
                        raise item
                    num_pairs += 1
                    pair = oriented(
                        id=f"{file.name}:{raw.line}",
                        source="orientation",
                        question=item.question or "helpful",
                        side=item.side,
                        prompt=list(item.prompt),
                        a=list(item.a.messages()),
                        b=list(item.b.messages()),
                    )
                    lines.write(json.dumps(pair, ensure_ascii=False) + "\n")
            except (Refused, ImportFileError) as error:
                raise ConfigError(f"{where} is no orientation pair: {error}. Correct the file.") from None
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
    parser, num_pairs = None, 0
    with out.open("a", encoding="utf-8") as lines, RecordFile(file) as records:
        for raw in records:
            try:
                record = load_object(raw.text)
                if parser is None:
                    parser = make_parser(detect(record, f"{file}, line {raw.line}"), file)
                items = list(parser(record))
            except Refused as refused:
                items = [refused]
            for number, item in enumerate(items):
                if isinstance(item, Refused):
                    left_out[item.reason] += 1
                elif item.side == "none":
                    left_out["none_" + (item.reason or "tie")] += 1
                else:
                    num_pairs += 1
                    pair = oriented(
                        id=f"{name_of(file)}:{raw.line}" + (f":{number}" if len(items) > 1 else ""),
                        source=name_of(file),
                        question=item.question or default,
                        side=item.side,
                        prompt=list(item.prompt),
                        a=list(item.a.messages()),
                        b=list(item.b.messages()),
                    )
                    # Benchmarks ask many raters about one prompt: those comparisons are not independent.
                    opening = next((message["content"] for message in item.prompt if message["role"] == "user"), None)
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
