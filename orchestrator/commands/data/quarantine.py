"""`orchestrator quarantine`: records that an import could not take, with line, reason and what was found."""

from __future__ import annotations

import argparse
import json

from sqlalchemy import select

from db import tables as t
from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.settings import Settings

_SHOWN_CHARACTERS = 80


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--file", help="only of files whose name ends so")
    parser.add_argument("--reason", help="only of this reason code; docs/reference/formats.md lists them")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="the newest; default %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON, with every record whole")


def run(args: argparse.Namespace) -> int:
    """Print the newest imports' records first, each import's by line."""
    kept = t.QuarantinedRecord
    query = select(
        t.Import.file_name.label("file"), kept.line, kept.reason, kept.detail, kept.record, kept.source, kept.created_at
    ).join(t.Import, t.Import.id == kept.import_id)
    if args.file:
        query = query.where(t.Import.file_name.endswith(args.file, autoescape=True))
    if args.reason:
        query = query.where(kept.reason == args.reason)
    query = query.order_by(kept.import_id.desc(), kept.line, kept.id).limit(args.limit)
    with session(Settings.from_env().require_database_url()) as database:
        rows = [dict(row._mapping) for row in database.execute(query)]
    if args.json:
        print(json.dumps(rows, indent=2, default=str, ensure_ascii=False))
        return 0
    for row in rows:
        del row["source"], row["created_at"]
        for name in ("detail", "record"):
            line = " ".join(row[name].split())
            row[name] = line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"
    print_table(rows, "No record is in quarantine.")
    return 0
