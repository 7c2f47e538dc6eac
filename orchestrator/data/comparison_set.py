"""Writes a comparison set: JSONL shards of oriented preference pairs, what was left out and why, and a manifest.

Postgres builds the lines and streams them in blocks; Python only hashes and writes, so memory does not grow. A shard
covers a fixed part of one freeze, so next week's set takes over the shards of this one, byte for byte.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from sqlalchemy import Engine

from models.runtime.files import link_or_copy
from models.runtime.results import IF_MEASURED, part_to_json
from orchestrator.config import ComparisonsSection
from orchestrator.data.comparison_sql import AFFECTED, LAST_CHANGE, PINNED, PREPARE, RUNS, WITHDRAWN, copy_statement
from orchestrator.data.copy_binary import BinaryRows
from orchestrator.errors import CycleError

MANIFEST_FORMAT = 1

# Ids of the raters left out of the set; there only where somebody withdrew.
WITHDRAWN_FILE = "withdrawn.json"

# Comparisons per shard, left out ones included: about 50 MB, so that a late pin rewrites little.
SHARD_COMPARISONS = 50_000

# Comparisons per block that Postgres hands over at once: about 100 KB.
BLOCK_COMPARISONS = 100

# Shards written at the same time, each by a connection of its own.
WRITERS = 2


@dataclass(frozen=True, kw_only=True)
class ComparisonSetResults:
    """What a comparison set, or a set of pairs from files, is published with: its manifest without the shards."""

    num_comparisons: int
    num_train: int
    num_held_out: int
    excluded: Mapping[str, int] = field(default_factory=dict)
    """Comparisons in no training, by reason."""
    num_excluded: int | None = field(default=None, metadata=IF_MEASURED)
    num_fresh: int | None = field(default=None, metadata=IF_MEASURED)
    """Comparisons of the last freeze."""
    freeze_id: int | None = field(default=None, metadata=IF_MEASURED)
    format: int | None = field(default=None, metadata=IF_MEASURED)
    settings: Mapping[str, Any] | None = field(default=None, metadata=IF_MEASURED)
    """What was asked for."""
    by_source: Mapping[str, int] | None = field(default=None, metadata=IF_MEASURED)


class ShardEntry(TypedDict):
    """A shard in the manifest."""

    file: str
    sha256: str
    records: int
    num_train: int
    num_held_out: int
    freeze_id: int
    first_id: int
    last_id: int
    excluded: dict[str, int]
    """Comparisons in no training, by reason."""
    excluded_file: str | None
    excluded_sha256: str | None


@dataclass(frozen=True)
class ShardPlan:
    """Which part of a freeze a shard covers: runs of successive comparison ids, both ends included."""

    freeze_id: int
    number: int
    runs: tuple[tuple[int, int], ...]

    @property
    def first_id(self) -> int:
        return self.runs[0][0]

    @property
    def last_id(self) -> int:
        return self.runs[-1][1]

    @property
    def name(self) -> str:
        return f"{self.freeze_id:06d}-{self.number:05d}.jsonl"


def build_comparison_set(
    engine: Engine, freeze_id: int, section: ComparisonsSection, previous: Path | None, out: Path
) -> ComparisonSetResults:
    """Write the comparison set of a freeze and all freezes before it into `out`; returns its counts.

    The same freeze and settings give the same bytes, and so does a later freeze that took nothing and heeded nobody:
    it is named after the last one that did. With or without `previous`, the directory of an earlier freeze's
    set with the same settings. A dialogue is held out by the hash of its opening message, or where an import pinned
    it; training comparisons whose opening is pinned elsewhere are left out as `held_out_elsewhere`, those of raters who
    withdrew before the freeze as `withdrawn`.

    Raises:
        CycleError: there is no such freeze.
    """
    (out / "shards").mkdir()
    (out / "excluded").mkdir()
    with _connection(engine) as cursor:
        plans = list(_plans(cursor, freeze_id))
        pinned = _pinned(cursor, freeze_id)
        withdrawn = _withdrawn(cursor, freeze_id)
        last_change = _last_change(cursor, freeze_id)
        taken_over = _reusable(cursor, previous, pinned, withdrawn, plans) if previous is not None else {}
    (out / "pinned.jsonl").write_text("".join(pinned), encoding="utf-8")
    if withdrawn:
        (out / WITHDRAWN_FILE).write_text(json.dumps(withdrawn) + "\n", encoding="utf-8")
    keys = sorted({json.loads(line)["split_key"] for line in pinned})

    def write(plan: ShardPlan) -> ShardEntry:
        entry = taken_over.get(plan)
        if entry is not None and previous is not None:
            for file in (entry["file"], entry["excluded_file"]):
                if file is not None:
                    link_or_copy(previous / file, out / file)
            return entry
        with _connection(engine) as cursor:
            return _write_shard(cursor, plan, section, keys, withdrawn, out)

    with ThreadPoolExecutor(WRITERS, thread_name_prefix="shard") as pool:
        shards = list(pool.map(write, plans))
    results = _counted(last_change, section, shards)
    manifest = {**part_to_json(results), "shards": shards}
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")
    return results


def _plans(cursor: Any, freeze_id: int) -> Iterator[ShardPlan]:
    """Cut every freeze into shards of equal numbers of comparisons, in the order of their ids."""
    cursor.execute(RUNS, {"freeze_id": freeze_id})
    runs: dict[int, list[tuple[int, int]]] = {}
    for this_freeze, first, last in cursor.fetchall():
        runs.setdefault(this_freeze, [])
        if first is not None:
            runs[this_freeze].append((first, last))
    if freeze_id not in runs:
        raise CycleError(f"There is no freeze with id {freeze_id}.")
    for this_freeze, freeze_runs in runs.items():
        for number, pieces in enumerate(cut_runs(freeze_runs, SHARD_COMPARISONS)):
            yield ShardPlan(this_freeze, number, tuple(pieces))


def cut_runs(runs: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Group runs of ids, cut where needed, so that each group but the last covers exactly `size` ids.

    cut_runs([(1, 5), (8, 9)], 3) gives [(1, 3)], [(4, 5), (8, 8)], [(9, 9)].
    """
    group: list[tuple[int, int]] = []
    room = size
    for first, last in runs:
        while first <= last:
            piece = min(last, first + room - 1)
            group.append((first, piece))
            room -= piece - first + 1
            first = piece + 1
            if room == 0:
                yield group
                group, room = [], size
    if group:
        yield group


def _last_change(cursor: Any, freeze_id: int) -> int:
    """The newest freeze up to this one that took a comparison or heeded a withdrawal; itself where none did."""
    cursor.execute(LAST_CHANGE, {"freeze_id": freeze_id})
    return int(cursor.fetchone()[0])


def _pinned(cursor: Any, freeze_id: int) -> list[str]:
    """The pinned dialogues that have a comparison in this freeze or an earlier one, as JSON lines."""
    cursor.execute(PINNED, {"freeze_id": freeze_id})
    return [json.dumps({"dialogue": id, "split_key": key}) + "\n" for id, key in cursor.fetchall()]


def _withdrawn(cursor: Any, freeze_id: int) -> list[int]:
    """The raters who withdrew before this freeze, by id."""
    cursor.execute(WITHDRAWN, {"freeze_id": freeze_id})
    return [row[0] for row in cursor.fetchall()]


def _reusable(
    cursor: Any, previous: Path, pinned: list[str], withdrawn: list[int], plans: list[ShardPlan]
) -> dict[ShardPlan, ShardEntry]:
    """The shards of the earlier set whose comparisons are split and left out today as they were then."""
    manifest = json.loads((previous / "manifest.json").read_text(encoding="utf-8"))
    entries: dict[str, ShardEntry] = {entry["file"]: entry for entry in manifest["shards"]}
    earlier_lines = (previous / "pinned.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    changed = {json.loads(line)["split_key"] for line in set(pinned) ^ set(earlier_lines)}
    file = previous / WITHDRAWN_FILE
    raters = set(withdrawn) ^ set(json.loads(file.read_text(encoding="utf-8")) if file.exists() else [])
    affected: list[int] = []
    if changed or raters:
        cursor.execute(AFFECTED, {"keys": sorted(changed), "raters": sorted(raters)})
        affected = [row[0] for row in cursor.fetchall()]
    reusable = {}
    for plan in plans:
        entry = entries.get(f"shards/{plan.name}")
        if entry is None or any(_any_between(affected, first, last) for first, last in plan.runs):
            continue
        if (entry["first_id"], entry["last_id"]) == (plan.first_id, plan.last_id):
            reusable[plan] = entry
    return reusable


def _any_between(ids: list[int], first: int, last: int) -> bool:
    place = bisect.bisect_left(ids, first)
    return place < len(ids) and ids[place] <= last


def _write_shard(
    cursor: Any,
    plan: ShardPlan,
    section: ComparisonsSection,
    pinned_keys: list[str],
    withdrawn: list[int],
    out: Path,
) -> ShardEntry:
    for statement in PREPARE:
        cursor.execute(statement)
    if pinned_keys:
        cursor.execute("create temporary table pinned_keys (split_key text primary key) on commit drop")
        cursor.execute("insert into pinned_keys select unnest(%s)", (pinned_keys,))
    blocks = [block for run in plan.runs for block in _blocks(*run)]
    cursor.execute("select exists (select from erased_comparisons)")
    (any_erased,) = cursor.fetchone()
    statement, parameters = copy_statement(
        section, blocks, any_pinned=bool(pinned_keys), any_erased=any_erased, withdrawn=withdrawn
    )
    sink = _ShardSink(out, plan.name)
    try:
        cursor.copy_expert(cursor.mogrify(statement, parameters).decode(), sink.rows)
    finally:
        sink.close()
    return sink.entry(plan)


def _blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last + 1, BLOCK_COMPARISONS):
        yield start, min(last, start + BLOCK_COMPARISONS - 1)


class _ShardSink:
    """Takes the blocks that Postgres sends and writes the two files of a shard."""

    def __init__(self, out: Path, name: str) -> None:
        self._file = f"shards/{name}"
        self._excluded_file = f"excluded/{name}"
        self._out = out
        self._lines = (out / self._file).open("wb")
        self._excluded: Any = None
        self._sha256 = hashlib.sha256()
        self._excluded_sha256 = hashlib.sha256()
        self._reasons: Counter[str] = Counter()
        self._num_train = 0
        self._num_held_out = 0
        self._last_block = 0
        self.rows = BinaryRows(self._take)

    def _take(self, fields: list[memoryview | None]) -> None:
        number, num_train, num_held_out = (int.from_bytes(field or b"", "big") for field in fields[:3])
        if number != self._last_block + 1:
            raise RuntimeError(f"Postgres sent block {number} after {self._last_block}; the order is part of the set")
        self._last_block = number
        self._num_train += num_train
        self._num_held_out += num_held_out
        lines, excluded = fields[3:]
        if lines is not None:
            self._lines.write(lines)
            self._sha256.update(lines)
        if excluded is not None:
            if self._excluded is None:
                self._excluded = (self._out / self._excluded_file).open("wb")
            self._excluded.write(excluded)
            self._excluded_sha256.update(excluded)
            self._reasons.update(json.loads(line)["reason"] for line in bytes(excluded).splitlines())

    def close(self) -> None:
        self._lines.close()
        if self._excluded is not None:
            self._excluded.close()

    def entry(self, plan: ShardPlan) -> ShardEntry:
        """The shard's entry in the manifest."""
        return {
            "file": self._file,
            "sha256": self._sha256.hexdigest(),
            "records": self._num_train + self._num_held_out,
            "num_train": self._num_train,
            "num_held_out": self._num_held_out,
            "freeze_id": plan.freeze_id,
            "first_id": plan.first_id,
            "last_id": plan.last_id,
            "excluded": dict(sorted(self._reasons.items())),
            "excluded_file": None if self._excluded is None else self._excluded_file,
            "excluded_sha256": None if self._excluded is None else self._excluded_sha256.hexdigest(),
        }


def _counted(freeze_id: int, section: ComparisonsSection, shards: Sequence[ShardEntry]) -> ComparisonSetResults:
    excluded: Counter[str] = Counter()
    for shard in shards:
        excluded.update(shard["excluded"])
    num_train = sum(shard["num_train"] for shard in shards)
    num_held_out = sum(shard["num_held_out"] for shard in shards)
    fresh = [shard for shard in shards if shard["freeze_id"] == freeze_id]
    return ComparisonSetResults(
        format=MANIFEST_FORMAT,
        freeze_id=freeze_id,
        settings=section.selection(),
        num_comparisons=num_train + num_held_out,
        num_train=num_train,
        num_held_out=num_held_out,
        num_fresh=sum(shard["records"] for shard in fresh),
        num_excluded=excluded.total(),
        excluded=dict(sorted(excluded.items())),
    )


@contextmanager
def _connection(engine: Engine) -> Iterator[Any]:
    """A cursor of psycopg2, because COPY has no counterpart in SQLAlchemy; rolled back at the end: it only reads."""
    connection = engine.raw_connection()
    try:
        yield connection.cursor()
    finally:
        connection.rollback()
        connection.close()
