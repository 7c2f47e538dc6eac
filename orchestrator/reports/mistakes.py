"""The texts of the preference model's most confident mistakes, read from the comparison set when somebody asks.

The preference model's artifact names them by id alone: what a rater has had erased is gone from the comparison set, and
so from here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.store.artifacts import ArtifactStore


def with_texts(session: Session, store: ArtifactStore, cycle_id: int, mistakes: Sequence[Any]) -> list[dict[str, Any]]:
    """The mistakes with `prompt`, `better` and `worse` as lists of messages; without them where the set is gone."""
    digest = session.scalars(
        select(t.Artifact.digest)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Artifact.kind == "comparison_set")
        .order_by(t.Stage.id.desc())
        .limit(1)
    ).first()
    if digest is None:
        return [dict(mistake) for mistake in mistakes]
    # An erasure wrote the set anew elsewhere; the newest of its places holds what is left.
    moved = select(t.ErasedArtifact.rewritten_digest).where(t.ErasedArtifact.digest == digest)
    place = session.scalars(moved.order_by(t.ErasedArtifact.id.desc()).limit(1)).first() or digest
    texts = _records(store.fetch(place), {mistake["id"] for mistake in mistakes})
    return [mistake | texts.get(mistake["id"], {}) for mistake in mistakes]


def _records(directory: Path, ids: set[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for shard in sorted((directory / "shards").glob("*.jsonl")):
        with shard.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                # A record begins with its id; only those asked for are read whole.
                if line[7 : line.index('"', 7)] in ids:
                    record = json.loads(line)
                    found[record["id"]] = {key: record[key] for key in ("prompt", "better", "worse")}
    return found


def to_text(mistakes: Sequence[dict[str, Any]]) -> str:
    """The mistakes as an operator reads them in a terminal."""
    if not mistakes:
        return "The preference model orders every held-out comparison rightly.\n"
    blocks = []
    for mistake in mistakes:
        head = (
            f"comparison {mistake['id']} ({mistake['source']}, {mistake['question']}): the worse reply scores "
            f"{mistake['worse_score']:.2f}, the better one {mistake['better_score']:.2f}"
        )
        lines = [head]
        for side, title in (("prompt", ""), ("better", "BETTER, "), ("worse", "WORSE, ")):
            lines += [f"  {title}{message['role']}: {message['content']}" for message in mistake.get(side, [])]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
