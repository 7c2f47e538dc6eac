"""`orchestrator artifacts`: list artifacts, newest first."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sqlalchemy import select

from db import tables as t
from db.session import session
from orchestrator.settings import Settings

UNITS = ("B", "KB", "MB", "GB", "TB")


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--kind", help="only this kind, e.g. snapshot or preference_model")
    parser.add_argument("--cycle", type=int, metavar="NUMBER", help="only those of this cycle")
    parser.add_argument("--limit", type=int, default=50, help="at most so many (default 50; 0 lists all)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    query = (
        select(t.Artifact, t.Cycle.number)
        .outerjoin(t.Cycle, t.Cycle.id == t.Artifact.cycle_id)
        .order_by(t.Artifact.id.desc())
    )
    if args.kind:
        query = query.where(t.Artifact.kind == args.kind)
    if args.cycle is not None:
        query = query.where(t.Cycle.number == args.cycle)
    if args.limit:
        query = query.limit(args.limit)
    with session(Settings.from_env().require_database_url()) as database:
        rows = [described(artifact, number) for artifact, number in database.execute(query)]
    if args.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("No artifacts. A cycle makes them: `orchestrator cycle run`.")
    else:
        for row in rows:
            cycle = "-" if row["cycle"] is None else str(row["cycle"])
            print(
                f"{row['id']:>6}  {row['kind']:<18}  cycle {cycle:<4} {row['digest'][:19]}  "
                f"{readable_size(row['num_bytes']):>9}  {row['created_at'][:16].replace('T', ' ')}"
            )
    return 0


def described(artifact: t.Artifact, cycle: int | None) -> dict[str, Any]:
    """An artifact as JSON values."""
    return {
        "id": artifact.id,
        "kind": artifact.kind,
        "cycle": cycle,
        "digest": artifact.digest,
        "fingerprint": artifact.fingerprint,
        "num_bytes": artifact.num_bytes,
        "code_revision": artifact.code_revision,
        "created_at": artifact.created_at.isoformat(),
        "settings": artifact.settings,
        "results": artifact.results,
    }


def readable_size(num_bytes: int) -> str:
    """1234567 is `1.2 MB`."""
    size = float(num_bytes)
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
