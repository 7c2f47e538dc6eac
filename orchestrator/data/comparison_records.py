"""The records of a comparison set: how a hand-made pair becomes one, and how those of a directory are read.

What writes them is `orchestrator/data/comparison_set.py` and `orchestrator/data/pair_set.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from models.preference.empty_splits import Contents
from orchestrator.data.questions import better_and_worse, question_answered

# How a line of a set begins that Postgres, or an erasure, wrote.
_BEGINNING = '{"id":"'


def oriented(
    *,
    id: str,
    source: str,
    question: str,
    side: str,
    prompt: list[Any],
    a: list[Any],
    b: list[Any],
) -> dict[str, Any]:
    """One hand-made pair as a record of a comparison set; turned round where its question asks for the worse reply."""
    better, worse = better_and_worse(side, question, a, b)
    return {
        "id": id,
        "split": "held_out",
        "source": source,
        "question": question_answered(question),
        "prompt": prompt,
        "better": better,
        "worse": worse,
    }


def records(
    directory: Path, split: str | None = None, *, ids: Collection[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The records of a comparison set in the order of its manifest: all, those of a split, or those with these ids."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    for shard in manifest["shards"]:
        # Not splitlines(): a reply may hold U+2028, which is no end of a JSON line.
        with (directory / shard["file"]).open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                if ids is not None and _certainly_not_of(line, ids):
                    continue
                record = json.loads(line)
                if split in (None, record["split"]) and (ids is None or record["id"] in ids):
                    yield record


def contents_of(directory: Path) -> Contents:
    """What a comparison set holds, for the advice on one that leaves a part empty."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    counts, ties = Counter[str](), 0
    openings: set[str] = set()
    for record in records(directory):
        if record.get("tie"):
            ties += 1
        else:
            counts[record["split"]] += 1
        if len(openings) < 2:
            openings.add(record.get("split_key") or record["id"])
    return Contents(
        train=counts["train"],
        held_out=counts["held_out"],
        ties=ties,
        left_out=manifest.get("excluded", {}),
        one_dialogue=len(openings) == 1,
    )


def _certainly_not_of(line: str, ids: Collection[str]) -> bool:
    """Whether the line's record has another id, seen without reading it whole: a handful is looked for in millions."""
    start = len(_BEGINNING)
    return line.startswith(_BEGINNING) and line[start : line.index('"', start)] not in ids
