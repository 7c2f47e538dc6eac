"""Freeze and export a million comparisons, and the week after: how fast, and in how much memory.

    python -m benchmarks.freeze [--comparisons 1000000] [--fresh 10000] [--work DIR]

A comparison has 1 KB of text (prompt and two replies). The yardstick is a bare `COPY ... TO STDOUT` of the same lines
out of a table of one column, the faster of two. Exit status 1 where a target is missed. A million needs about 8 GB
under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import tables as t
from db.migrate import upgrade
from db.session import make_engine
from orchestrator.config import ComparisonsSection
from orchestrator.data import freeze as dataset
from orchestrator.instance.postgres import EmbeddedPostgres
from orchestrator.store.artifacts import ArtifactStore

MAX_COST = 3.0  # times the bare COPY
MAX_MEMORY_MB = 500
MAX_SECOND_WEEK = 0.05  # of the first week's time

# Quotes, backslashes, letters beyond ASCII: what has to be escaped has to be paid for.
TEXT = "substr(repeat(md5({seed}) || ' it''s \"quoted\" \\ é, ', 12), 1, {length})"

GENERATE = (
    """insert into dialogues (id, source, tranche, task, rater_id, split_key)
       select n, 'feedback', 'online', 'helpful', 1 + mod(n, 100), encode(sha256(n::text::bytea), 'hex')
       from generate_series({first}, {last}) n""",
    "insert into messages (id, dialogue_id, role, content)"
    f" select n, n, 'user', {TEXT.format(seed='n::text', length=224)} from generate_series({{first}}, {{last}}) n",
    "insert into pairs (id, dialogue_id, parent_id, question)"
    " select n, n, n, 'helpful' from generate_series({first}, {last}) n",
    "insert into candidates (pair_id, side, seed, text, completed_at, reply_tokens, truncated)"
    f" select n, side, n, {TEXT.format(seed='n::text || side', length=400)}, now(), 90, false"
    " from generate_series({first}, {last}) n, (values ('a'), ('b')) sides (side)",
    "insert into comparisons (pair_id, rater_id, side, reason, strength)"
    " select n, 1 + mod(n, 100), case when mod(n, 50) = 0 then 'none' when mod(n, 2) = 0 then 'a' else 'b' end,"
    " case when mod(n, 50) = 0 then 'cant_tell' end, case when mod(n, 50) <> 0 then 1 + mod(n, 4) end"
    " from generate_series({first}, {last}) n",
)


class Memory:
    """Peak of the private memory of this process and of every Postgres process, sampled while a block runs."""

    def __init__(self, postmaster: int) -> None:
        self._postmaster = postmaster
        self.peak_mb = 0.0
        self._done = threading.Event()

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            pids = [os.getpid(), self._postmaster, *_children(self._postmaster)]
            self.peak_mb = max(self.peak_mb, sum(map(_private_mb, pids)))


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _private_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(kilobytes[0]) / 1024 if kilobytes else 0.0


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Any:
    """Record the wall time of a block."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    print(f"{name:<28} {seconds[name]:8.2f} s", flush=True)


def generate(engine: Engine, first: int, last: int) -> None:
    """Comparisons `first` to `last`, one dialogue of one turn each."""
    with engine.begin() as connection:
        # Foreign keys of what the comparisons hang on are not checked: most of the time, and not what is measured.
        connection.exec_driver_sql("set local session_replication_role = replica")
        for statement in GENERATE[:-1]:
            connection.exec_driver_sql(statement.format(first=first, last=last))
        connection.exec_driver_sql("set local session_replication_role = origin")
        connection.exec_driver_sql(GENERATE[-1].format(first=first, last=last))


def freeze(engine: Engine, number: int) -> int:
    """Freeze in a cycle of its own."""
    with Session(engine) as session, session.begin():
        cycle = t.Cycle(number=number, name="benchmark", config={})
        session.add(cycle)
        session.flush()
        freeze_id = dataset.freeze(session, cycle.id).id
        session.connection().exec_driver_sql(
            "update cycles set state = 'refused', ended_at = now() where state = 'open'"
        )
        return freeze_id


def bare_copy(engine: Engine, out: Path) -> float:
    """Seconds that a bare COPY of the same lines takes, into a file."""
    connection = engine.raw_connection()
    start = time.perf_counter()
    with out.open("wb") as file:
        connection.cursor().copy_expert("copy yardstick to stdout", file)
    seconds = time.perf_counter() - start
    connection.rollback()
    connection.close()
    out.unlink()
    return seconds


def load_yardstick(engine: Engine, comparison_set: Path) -> None:
    """A table of one column with the lines that were exported."""
    connection = engine.raw_connection()
    cursor = connection.cursor()
    cursor.execute("create table yardstick (line text)")
    for shard in sorted((comparison_set / "shards").iterdir()):
        with shard.open("rb") as lines:
            # Control characters that no JSON text holds: the lines go in as they are.
            cursor.copy_expert("copy yardstick from stdin (format csv, delimiter e'\\x01', quote e'\\x02')", lines)
    connection.commit()
    connection.close()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as maintenance:
        maintenance.exec_driver_sql("vacuum analyze yardstick")


def main() -> int:
    """Run, print the figures, and say which target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1_000_000)
    parser.add_argument("--fresh", type=int, default=10_000, help="comparisons of the second week")
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="freeze-", dir=args.work))
    work.chmod(0o755)
    try:
        with EmbeddedPostgres(work / "postgres") as server:
            upgrade(server.url)
            engine = make_engine(server.url)
            figures = run(engine, server.pid or 0, work, args.comparisons, args.fresh)
            engine.dispose()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(figures, indent=1))
    missed = [name for name, met in figures["targets"].items() if not met]
    print("All targets met." if not missed else f"Missed: {', '.join(missed)}.")
    return 1 if missed else 0


def run(engine: Engine, postmaster: int, work: Path, num: int, num_fresh: int) -> dict[str, Any]:
    """Two weeks; returns the figures."""
    section = ComparisonsSection()
    seconds: dict[str, float] = {}
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into raters (handle, kind) select 'rater-' || n, 'synthetic' from generate_series(1, 100) n"
        )
    with timed(seconds, "generate"):
        generate(engine, 1, num)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as maintenance:
        maintenance.exec_driver_sql("vacuum analyze")
        maintenance.exec_driver_sql("checkpoint")
    one, two = work / "one", work / "two"
    one.mkdir()
    two.mkdir()
    with Memory(postmaster) as memory:
        with timed(seconds, "week 1: freeze"):
            first = freeze(engine, 1)
        with timed(seconds, "week 1: export"):
            results = dataset.build_comparison_set(engine, first, section, None, one)
    num_bytes = sum(path.stat().st_size for path in (one / "shards").iterdir())
    load_yardstick(engine, one)
    bare = [bare_copy(engine, work / "bare") for _ in range(2)]
    generate(engine, num + 1, num + num_fresh)
    with timed(seconds, "week 2: freeze"):
        second = freeze(engine, 2)
    with timed(seconds, "week 2: export"):
        again = dataset.build_comparison_set(engine, second, section, one, two)
    store = ArtifactStore(f"file://{work / 'store'}", work / "cache")
    with timed(seconds, "publish week 1 (not counted)"):
        store.publish(one)
    week_one = seconds["week 1: freeze"] + seconds["week 1: export"]
    week_two = seconds["week 2: freeze"] + seconds["week 2: export"]
    # One comparison in fifty is a "can't tell", which is left out.
    assert results.num_comparisons == num - num // 50
    assert again.num_comparisons == num + num_fresh - (num + num_fresh) // 50
    return {
        "comparisons": num,
        "bytes_per_line": round(num_bytes / results.num_comparisons),
        "bare_copy_s": [round(value, 2) for value in bare],
        "week_1_s": round(week_one, 2),
        "week_2_s": round(week_two, 3),
        "cost_in_bare_copies": round(week_one / min(bare), 2),
        "comparisons_per_s": round(num / week_one),
        "peak_private_memory_mb": round(memory.peak_mb),
        "second_week_share": round(week_two / week_one, 4),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "targets": {
            f"at most {MAX_COST} bare copies": week_one <= MAX_COST * min(bare),
            f"under {MAX_MEMORY_MB} MB": 0 < memory.peak_mb < MAX_MEMORY_MB,
            f"second week under {MAX_SECOND_WEEK:.0%}": week_two < MAX_SECOND_WEEK * week_one,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
