"""Export of comparisons to a file (catalogue C9), in the product's own format or in one that other tools read.

What a format cannot hold is left out and counted by reason. Rows are read through a server-side cursor and the
file appears by rename when it is complete.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from sqlalchemy.orm import Session

from db import exports
from orchestrator.data.comparison_records import oriented
from orchestrator.data.formats import EXPORTS, own, reads_back
from orchestrator.data.formats.records import Message, RawRecord, Side
from orchestrator.errors import ImportFileError

BATCH_ROWS = 1000
"""Comparisons whose prompts are read together."""


@dataclass(frozen=True)
class ExportRequest:
    """Which comparisons, and how to write them; None means all."""

    format: str = "own"
    source: str | None = None
    question: str | None = None
    label_kind: str | None = None


@dataclass(frozen=True)
class ExportReport:
    """What was written. `read = exported + left_out`."""

    file: str
    format: str
    read: int
    exported: int
    left_out: int
    reasons: dict[str, int]
    """Comparisons left out, by reason; docs/reference/formats.md lists them."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def export_file(session: Session, file: Path, request: ExportRequest | None = None) -> ExportReport:
    """Write comparisons to `file` in the order they came; gzip where its name ends with .gz.

    Raises:
        ImportFileError: the file cannot be written.
    """
    request = request or ExportRequest()
    left_out: Counter[str] = Counter()
    exported = 0
    # Into a pipe or a device there is nothing to rename.
    whole = not file.exists() or file.is_file()
    target = Path(os.path.realpath(file))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial") if whole else file
    try:
        with partial.open("wb") as raw, _writer(raw, file.suffix == ".gz") as out:
            for row in _rows(session, request):
                record, reason = _record(row, request.format)
                if record is None:
                    left_out[reason] += 1
                    continue
                out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                exported += 1
            out.flush()
            if out is not raw:
                out.close()
            raw.flush()
            if whole:
                os.fsync(raw.fileno())
        if whole:
            partial.replace(target)
    except OSError as error:
        raise ImportFileError(f"{file} cannot be written: {error.strerror}.") from None
    finally:
        if whole:
            partial.unlink(missing_ok=True)
    num_left_out = left_out.total()
    return ExportReport(
        file=str(file),
        format=request.format,
        read=exported + num_left_out,
        exported=exported,
        left_out=num_left_out,
        reasons=dict(sorted(left_out.items())),
    )


def _writer(raw: IO[bytes], zipped: bool) -> IO[bytes]:
    # No name and no time in the header: the same rows give the same bytes.
    return cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)) if zipped else raw


def _rows(session: Session, request: ExportRequest) -> Iterator[RawRecord]:
    """Comparisons with their pair, sides, rater and prompt; memory holds one batch."""
    connection = session.connection().connection
    cursor = cast(Any, connection.cursor("comparisons_for_export"))
    prompts = connection.cursor()
    cursor.itersize = BATCH_ROWS
    try:
        cursor.execute(
            exports.COMPARISONS,
            {"source": request.source, "question": request.question, "label_kind": request.label_kind},
        )
        while batch := cursor.fetchmany(BATCH_ROWS):
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, values, strict=True)) for values in batch]
            prompts.execute(exports.PROMPTS, (list({row["parent_id"] for row in rows}),))
            paths: dict[int, list[Message]] = dict(prompts.fetchall())
            for row in rows:
                yield {**row, "prompt": paths[row["parent_id"]]}
    finally:
        cursor.close()
        prompts.close()


def _record(row: RawRecord, format_name: str) -> tuple[RawRecord | None, str]:
    """The record of a comparison, or None and why it has none."""
    if row["withdrawn"]:
        return None, "withdrawn"
    if row["erased"]:
        return None, "erased"
    if format_name == "own":
        return own_record(row), ""
    if row["purpose"] == "evaluation":
        return None, "evaluation"
    if row["side"] == "none":
        return None, f"none_{row['reason']}"
    prompt: list[Message] = row["prompt"]
    if row["system"] and (not prompt or prompt[0]["role"] != "system"):
        prompt = [{"role": "system", "content": row["system"]}, *prompt]
    a, b = _side(row, "a"), _side(row, "b")
    if a.messages() == b.messages():
        return None, "identical_replies"
    pair = oriented(id="", source="", question=row["question"], side=row["side"], prompt=prompt, a=[a], b=[b])
    (better,), (worse,) = pair["better"], pair["worse"]
    render = EXPORTS[format_name][1]
    assert render is not None
    record = render(prompt, better, worse)
    if record is None or not reads_back(format_name, record, prompt, better, worse):
        return None, "not_representable"
    if format_name != "hh":
        return {**record, "question": pair["question"]}, ""
    return record, ""


def _side(row: RawRecord, letter: str) -> Side:
    return Side(
        text=row[f"{letter}_text"],
        history=row[f"{letter}_history"] or [],
        contestant=row[f"{letter}_contestant"],
        sampling=row[f"{letter}_sampling"],
        seed=row[f"{letter}_seed"],
        reply_tokens=row[f"{letter}_reply_tokens"],
        truncated=row[f"{letter}_truncated"],
    )


def own_record(row: RawRecord) -> RawRecord:
    """All columns of a comparison, its pair and its dialogue; ids only inside identities."""
    return {
        "format": own.FORMAT,
        "identity": row["pair_identity"] or _identity("pair", row["pair_id"], row["pair_created_at"]),
        "dialogue_identity": row["dialogue_identity"]
        or _identity("dialogue", row["dialogue_id"], row["dialogue_created_at"]),
        **{key: row[key] for key in _OWN_DIALOGUE},
        "prompt": row["prompt"],
        "question": row["question"],
        "purpose": row["purpose"],
        "instruction_version": row["instruction_version"],
        "a": {key: value for key, value in asdict(_side(row, "a")).items() if value is not None},
        "b": {key: value for key, value in asdict(_side(row, "b")).items() if value is not None},
        **{key: row[key] for key in _OWN_COMPARISON},
        "decided_at": None if row["decided_at"] is None else row["decided_at"].astimezone(UTC).isoformat(),
    }


_OWN_DIALOGUE: Sequence[str] = ("source", "tranche", "task", "external_id", "pinned_split", "system")
_OWN_COMPARISON: Sequence[str] = (
    "side", "reason", "strength", "label_kind", "rater", "rater_kind", "source_value", "duration_ms"
)  # fmt: skip


def _identity(kind: str, row_id: int, created_at: datetime) -> str:
    """A name for a row that was written here: id and time together name it in any database."""
    return f"{kind}:{row_id}:{created_at.astimezone(UTC).isoformat()}"
