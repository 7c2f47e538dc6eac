"""The reference set of a project: held-out dialogues on which every preference model is scored once.

Only differences of scores mean anything, so scores of two preference models can be shown together only after each
model's mean over one and the same set is taken off [50]. The set is chosen in a project's first cycle and stays.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.preference.empty_splits import advice
from orchestrator.data import pair_set
from orchestrator.data.comparison_records import contents_of, records
from orchestrator.errors import CycleError

FILE = "reference.jsonl"


def choose(comparisons: Path, pairs: int, out: Path) -> Mapping[str, object]:
    """Write the held-out records with the smallest hash of their texts: the same ones, whatever their ids and order.

    Raises:
        CycleError: the comparison set holds none.
    """
    held_out = records(comparisons, "held_out")
    chosen = heapq.nsmallest(pairs, ((_place(record), record) for record in held_out), key=lambda e: e[0])
    if not chosen:
        raise CycleError(
            "The comparison set has no held-out comparison, to judge a preference model or to choose a reference set "
            f"from (reference.file). {advice(contents_of(comparisons))}"
        )
    return _write((record for _, record in chosen), out)


def _place(record: Mapping[str, Any]) -> str:
    texts = json.dumps([record["prompt"], record["better"], record["worse"]], sort_keys=True)
    return hashlib.sha256(f"reference/{texts}".encode()).hexdigest()


def reference_set_from_file(file: Path, out: Path) -> Mapping[str, object]:
    pairs = pair_set.write_orientation_pairs(file, out)
    (out / "pairs.jsonl").rename(out / FILE)
    return pairs


def _write(chosen: Iterator[Mapping[str, Any]], out: Path) -> Mapping[str, object]:
    num_pairs = 0
    with (out / FILE).open("w", encoding="utf-8", newline="\n") as file:
        for record in chosen:
            num_pairs += 1
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return {"num_pairs": num_pairs}
