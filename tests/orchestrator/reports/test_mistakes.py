"""The texts of mistakes come from the comparison set, and from what an erasure left of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import Mistake
from models.runtime.results import part_to_json
from orchestrator.reports.mistakes import to_text, with_texts
from orchestrator.store.artifacts import ArtifactStore
from tests.db.rows import add_artifact, add_cycle, add_rater

MISTAKE = Mistake(id="", source="s", question="helpful", better_score=-1.0, worse_score=2.0, gap=-3.0)


def write_set(folder: Path, *records: dict[str, Any]) -> Path:
    (folder / "shards").mkdir(parents=True)
    with (folder / "shards" / "000001-00000.jsonl").open("w") as lines:
        for record in records:
            lines.write(json.dumps(record, separators=(",", ":")) + "\n")
    (folder / "manifest.json").write_text('{"shards": [{"file": "shards/000001-00000.jsonl"}]}')
    return folder


def record(name: str, reply: str) -> dict[str, Any]:
    messages = {side: [{"role": "assistant", "content": f"{reply} {side}"}] for side in ("better", "worse")}
    return {"id": name, "split": "held_out", "prompt": [{"role": "user", "content": f"asked {name}"}], **messages}


def test_texts_are_those_of_the_set_or_of_what_an_erasure_left(engine: Engine, tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/artifacts", tmp_path / "cache")
    whole = store.publish(write_set(tmp_path / "whole", record("17", "seventeen"), record("171", "another")))
    mistakes = [replace(MISTAKE, id=name) for name in ("171", "17", "99")]
    with Session(engine) as session, session.begin():
        cycle = add_cycle(session)
        bare = with_texts(session, store, cycle.id, mistakes)
        assert [part_to_json(mistake) for mistake in bare] == [part_to_json(mistake) for mistake in mistakes]
        artifact = add_artifact(session, "comparison_set", digest=whole.digest)
        session.add(t.Stage(cycle_id=cycle.id, name="freeze_comparisons", artifact_id=artifact.id))
        session.flush()
        found = with_texts(session, store, cycle.id, mistakes)
        assert [mistake.id for mistake in found] == ["171", "17", "99"]
        assert found[0].better == [{"role": "assistant", "content": "another better"}]
        assert found[1].prompt == [{"role": "user", "content": "asked 17"}]
        assert "prompt" not in part_to_json(found[2])
        text = to_text(found)
        assert "comparison 17 (s, helpful): the worse reply scores 2.00, the better one -1.00" in text
        assert "  BETTER, assistant: seventeen better\n  WORSE, assistant: seventeen worse" in text

        blanked = record("17", "[erased]") | {"prompt": [{"role": "user", "content": "[erased]"}]}
        left = store.publish(write_set(tmp_path / "left", blanked, record("171", "another")))
        erasure = t.Erasure(rater_id=add_rater(session).id, note="")
        session.add(erasure)
        session.flush()
        session.add(
            t.ErasedArtifact(
                digest=whole.digest,
                erasure_id=erasure.id,
                rewritten_digest=left.digest,
                num_comparisons=1,
                num_records=0,
            )
        )
        session.flush()
        store.delete(whole.digest)
        found = with_texts(session, store, cycle.id, mistakes)
        assert found[1].prompt == [{"role": "user", "content": "[erased]"}]
        assert "seventeen" not in to_text(found)
    assert to_text([]).startswith("The preference model orders every held-out comparison rightly")
