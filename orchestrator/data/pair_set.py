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
