"""`orchestrator verify`: read every artifact and compare it with its digest."""

from __future__ import annotations

import argparse
import json

from sqlalchemy import select

from db import tables as t
from db.session import session
from orchestrator.settings import Settings
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("artifact", nargs="*", help="ids or digests; all artifacts where none is given")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Check the artifacts; exit status 1 where any is not what its digest says."""
    settings = Settings.from_env()
    store = ArtifactStore(settings.artifact_url, settings.home / "cache")
    with session(settings.require_database_url()) as database:
        if args.artifact:
            rows = [ledger.resolve(database, reference) for reference in args.artifact]
        else:
            rows = list(database.execute(select(t.Artifact).order_by(t.Artifact.id)).scalars())
        # What was written anew for an erasure lies elsewhere, and must be sound there.
        erased = select(t.ErasedArtifact.digest, t.ErasedArtifact.rewritten_digest).order_by(t.ErasedArtifact.id)
        places = {row.digest: row.rewritten_digest for row in database.execute(erased)}
        checked: dict[str, list[str]] = {}
        for row in rows:
            if row.digest not in checked:
                checked[row.digest] = store.verify(places.get(row.digest, row.digest))
        bad = [(row, checked[row.digest]) for row in rows if checked[row.digest]]
        num_bytes = sum({row.digest: row.num_bytes for row in rows}.values())
    if args.json:
        told = [{"id": row.id, "kind": row.kind, "digest": row.digest, "problems": found} for row, found in bad]
        print(json.dumps({"artifacts": len(rows), "num_bytes": num_bytes, "bad": told}, indent=2))
    else:
        for row, found in bad:
            print(f"Artifact {row.id} ({row.kind}, {row.digest}): {'; '.join(found)}.")
        if bad:
            print(f"{len(bad)} of {len(rows)} artifacts are not what their digests say. Restore them from backup.")
        else:
            print(f"{len(rows)} artifacts, {num_bytes} bytes: all are what their digests say.")
        if places:
            print(f"{len(places)} of them were written anew without texts that were erased.")
    return 1 if bad else 0
