"""The database half of an import: records go into temporary tables by COPY and from there on in whole sets.

Everything happens in the caller's transaction. `importing.py` reads the file and calls this in order:
`Staging.add` and `refuse` for each record, then `finish`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from typing import Any

import psycopg2
from sqlalchemy.orm import Session

from db import imports
from db.split import split_key
from orchestrator.data.formats.records import ImportedComparison, Message, Refused, Side
from orchestrator.errors import ImportFileError

FLUSH_ROWS = 2000
"""Rows held in memory before they are copied; records are at most some kilobytes each."""


@dataclass(frozen=True)
class ImportOptions:
    """What an import says about all records of a file, where the records do not say it themselves."""

    source: str
    question: str = "helpful"
    label_kind: str | None = None
    """Wins over what the format knows; None leaves it to the format, else `human`."""
    tranche: str = "imported"
    split: str | None = None
    """`held_out` pins every dialogue of the file."""


@dataclass(frozen=True)
class ImportFacts:
    """What the row in `imports` says about the file."""

    file_name: str
    file_digest: str
    format: str
    started_at: datetime


class Staging:
    """Temporary tables of one import, in the session's transaction."""

    def __init__(self, session: Session, options: ImportOptions) -> None:
        self.options = options
        self.seq = 0
        self._cursor = session.connection().connection.cursor()
        self._rows: dict[str, list[str]] = {name: [] for name in imports.TABLES}
        for name, columns in imports.TABLES.items():
            self._cursor.execute(f"drop table if exists pg_temp.{name}")
            self._cursor.execute(f"create temp table {name} ({columns}) on commit drop")

    def add(self, comparison: ImportedComparison, line: int, raw: str) -> None:
        """Stage one comparison."""
        self.seq += 1
        row, messages = staged_row(comparison, self.options)
        self._put("staged", (self.seq, line, comparison.raw or raw, *row))
        for message in messages:
            self._put("staged_messages", (self.seq, *message))

    def refuse(self, refused: Refused, line: int, raw: str) -> None:
        """Stage one record for the quarantine."""
        self.seq += 1
        record = (refused.raw or raw).replace("\x00", "\\u0000")
        detail = refused.detail.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\0")
        digest = hashlib.sha256(record.encode()).hexdigest()
        self._put("staged_refusals", (self.seq, line, refused.reason, detail, record, digest))

    def finish(self, facts: ImportFacts) -> dict[str, int]:
        """Move what is staged into the tables; returns `imported`, `already_there` and counts by reason code."""
        for name in imports.TABLES:
            self._flush(name)
            self._cursor.execute(f"analyze {name}")
        # Sorts and hash tables of a large file; the setting ends with the transaction.
        self._cursor.execute("set local work_mem = '64MB'")
        self._cursor.execute("select pg_advisory_xact_lock(%s)", (imports.LOCK_KEY,))
        for statement in imports.CLASSIFY:
            self._cursor.execute(statement)
        self._cursor.execute("select outcome, count(*) from decided group by outcome")
        outcomes = dict(self._cursor.fetchall())
        self._cursor.execute("select reason, count(*) from staged_refusals group by reason order by reason")
        reasons = dict(self._cursor.fetchall())
        import_id = self._write_import(facts, outcomes, sum(reasons.values()))
        if outcomes.get("import"):
            for statement in imports.WRITE:
                self._cursor.execute(statement, {"import_id": import_id})
        self._cursor.execute(imports.QUARANTINE, {"import_id": import_id, "source": self.options.source})
        return {
            "imported": outcomes.get("import", 0),
            "already_there": outcomes.get("already_there", 0),
            **reasons,
        }

    def refused_lines(self, most: int) -> dict[str, list[int]]:
        """The first lines of each reason code, at most so many; after `finish`, which finds repeats."""
        self._cursor.execute(
            "select reason, (array_agg(line order by seq))[1:%s] from staged_refusals group by reason order by reason",
            (most,),
        )
        return {reason: list(lines) for reason, lines in self._cursor.fetchall()}

    def _write_import(self, facts: ImportFacts, outcomes: dict[str, int], num_quarantined: int) -> int:
        imported, there = outcomes.get("import", 0), outcomes.get("already_there", 0)
        self._cursor.execute(
            "insert into imports (file_name, file_digest, source, format, split, num_read, num_imported,"
            " num_already_there, num_quarantined, started_at)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning id",
            (
                facts.file_name, facts.file_digest, self.options.source, facts.format, self.options.split,
                imported + there + num_quarantined, imported, there, num_quarantined, facts.started_at,
            ),
        )  # fmt: skip
        row = self._cursor.fetchone()
        assert row is not None
        return int(row[0])

    def _put(self, table: str, row: Sequence[Any]) -> None:
        rows = self._rows[table]
        rows.append("\t".join(map(_copy_text, row)))
        if len(rows) >= FLUSH_ROWS:
            self._flush(table)

    def _flush(self, table: str) -> None:
        rows = self._rows[table]
        if rows:
            try:
                self._cursor.copy_expert(f"copy {table} from stdin", StringIO("\n".join(rows) + "\n"))
            except psycopg2.DataError as error:
                # Readers refuse what Postgres cannot hold; this is what they do not know of.
                raise ImportFileError(f"Postgres refuses a record: {str(error).strip().splitlines()[0]}") from None
            rows.clear()


def _copy_text(value: Any) -> str:
    """A value as COPY's text format wants it."""
    if value is None:
        return "\\N"
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False, allow_nan=False)
    elif isinstance(value, datetime):
        return value.isoformat()
    elif not isinstance(value, str):
        return str(value)
    # Four replacements are ten times quicker than one `translate`; the backslash must come first.
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def message_paths(messages: list[Message]) -> list[str]:
    """The path digest of each message: of itself and all before it. Equal beginnings have equal paths."""
    paths: list[str] = []
    path = ""
    for message in messages:
        path = hashlib.sha256(f"{path}{message['role']}\0{message['content']}".encode()).hexdigest()
        paths.append(path)
    return paths


def staged_row(comparison: ImportedComparison, options: ImportOptions) -> tuple[list[Any], list[tuple[Any, ...]]]:
    """The columns of `staged` after seq, line and raw, and the rows of `staged_messages` after seq.

    A dialogue is a tree that begins with its opening message: records of one source with the same opening (and
    system message, and external id) share it, and with it their common messages.
    """
    own, prompt = comparison.own, comparison.prompt
    paths = message_paths(prompt)
    opening = next(index for index, message in enumerate(prompt) if message["role"] == "user")
    source = own.source if own else options.source
    tranche = own.tranche if own else options.tranche
    pinned = options.split or (own.pinned_split if own else None)
    question = comparison.question or options.question
    label_kind = options.label_kind or comparison.label_kind or "human"
    own_id, own_created_at = None, None
    if own:
        label_kind = comparison.label_kind or "human"
        identity = pinned_identity = own.identity
        dialogue_identity = own.dialogue_identity
        if pinned and not own.pinned_split:
            identity = pinned_identity = f"{identity}#held_out"
            dialogue_identity = f"{dialogue_identity}#held_out"
        elif identity.startswith("pair:"):
            own_id, own_created_at = parse_identity(identity)
    else:
        sides = sorted(_digest(side.history, side.text, side.contestant) for side in (comparison.a, comparison.b))
        content = (source, question, paths[-1], *sides)
        pinned_identity = _digest("held_out", *content)
        identity = pinned_identity if pinned else _digest(*content)
        dialogue_identity = _digest(source, tranche, pinned, comparison.external_id, paths[opening])
    rater = comparison.rater if own else f"{source}/{comparison.rater or 'anonymous'}"
    rater_kind = own.rater_kind if own else "imported" if label_kind == "human" else "model"
    row = [
        source, tranche, own.task if own else "import", dialogue_identity, comparison.external_id,
        split_key(prompt[opening]["content"]), pinned, own.system if own else None, paths[-1], identity,
        pinned_identity, own_id, own_created_at, question, own.purpose if own else "training",
        own.instruction_version if own else None, comparison.side, comparison.reason, comparison.strength,
        label_kind, rater, rater_kind, comparison.source_value, own.duration_ms if own else None,
        comparison.decided_at, *_side_columns(comparison.a), *_side_columns(comparison.b),
    ]  # fmt: skip
    parents = [None, *paths[:-1]]
    messages = [
        (depth, dialogue_identity, path, parent, message["role"], message["content"])
        for depth, (path, parent, message) in enumerate(zip(paths, parents, prompt, strict=True))
    ]
    return row, messages


def _side_columns(side: Side) -> tuple[Any, ...]:
    return (
        side.text, side.history or None, side.contestant, side.sampling, side.seed, side.reply_tokens, side.truncated
    )  # fmt: skip


def parse_identity(identity: str) -> tuple[int, str]:
    """Id and time of a pair out of `pair:<id>:<time>`, the identity that an export gives a pair shown here.

    Raises:
        Refused: another shape.
    """
    parts = identity.split(":", 2)
    try:
        time = datetime.fromisoformat(parts[2])
        return int(parts[1]), time.isoformat()
    except (IndexError, ValueError):
        raise Refused("unknown_value", f"identity is {identity!r}; expected pair:<id>:<time> or a digest") from None
