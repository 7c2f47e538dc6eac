"""Comparison sets built from the rows, and what stands in their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from orchestrator.config import ComparisonsSection
from orchestrator.data import freeze
from orchestrator.data.comparison_set import ComparisonSetResults
from tests.db.rows import add_cycle, close

HALF = ComparisonsSection(held_out_fraction=0.5)


def frozen(engine: Engine) -> int:
    """Freeze what is committed, in a cycle of its own."""
    with Session(engine) as session, session.begin():
        cycle = add_cycle(session)
        freeze_id = freeze.freeze(session, cycle.id).id
        close(session, cycle)
        return freeze_id


def build(
    engine: Engine, out: Path, freeze_id: int, previous: Path | None = None, section: ComparisonsSection = HALF
) -> ComparisonSetResults:
    out.mkdir()
    return freeze.build_comparison_set(engine, freeze_id, section, previous, out)


def records(directory: Path) -> list[dict[str, Any]]:
    manifest = json.loads((directory / "manifest.json").read_text())
    lines = b"".join((directory / shard["file"]).read_bytes() for shard in manifest["shards"])
    return [json.loads(line) for line in lines.split(b"\n") if line]


def excluded(directory: Path) -> dict[str, str]:
    files = sorted((directory / "excluded").iterdir())
    return {
        entry["id"]: entry["reason"]
        for file in files
        for entry in map(json.loads, file.read_text().splitlines())
    }  # fmt: skip
