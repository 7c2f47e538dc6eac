"""Snapshots of a run become artifacts: found again, with lineage to the run, ready to be paired and rated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from db import tables as t
from models.runtime.results import result_to_json
from orchestrator.config import parse_config
from orchestrator.conversations.contestants import get_contestant
from orchestrator.conversations.pairings import open_pairing, served
from orchestrator.judging.standings import _cycles
from orchestrator.stages.context import StageContext
from orchestrator.stages.snapshots import publish_snapshots
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.store.ledger import snapshots_of
from orchestrator.store.lineage import lineage
from tests.db.rows import add_cycle
from tests.orchestrator.reports.policy_results import BARE_PPO

CONFIG = {"initial_policy": {"path": "x"}}
POINTS = [
    {"folder": "snapshots/01", "samples": 64, "kl_nats": 1.0, "score": 2.0},
    {"folder": "snapshots/02", "samples": 256, "kl_nats": 4.0, "score": 3.0},
]


def add_run(session: Session, store: ArtifactStore, folder: Path, cycle_id: int) -> int:
    """The artifact of a run that kept two snapshots, as its job leaves it, and the stage that ended with it."""
    for number in ("", *(point["folder"] for point in POINTS)):
        (folder / number).mkdir(parents=True, exist_ok=True)
        (folder / number / "config.json").write_text(json.dumps({"weights": number or "last"}))
    run = ledger.record(
        session, kind="snapshot", fingerprint="0" * 64, published=store.publish(folder), settings={},
        results=result_to_json(BARE_PPO) | {"snapshots": POINTS}, inputs={}, cycle_id=cycle_id,
    )  # fmt: skip
    session.add(t.Stage(cycle_id=cycle_id, name="train_policy", state="done", artifact_id=run.id))
    return run.id


def test_snapshots_are_artifacts_of_their_own_and_made_once(
    database_url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    store = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache")
    engine = create_engine(database_url)
    with Session(engine) as session, session.begin():
        config = parse_config(CONFIG).model_dump(mode="json")
        cycle = add_cycle(session, config=config)
        cycle_id, number = cycle.id, cycle.number
        run_id = add_run(session, store, tmp_path / "run", cycle_id)
    with StageContext(cycle_id, "train_policy") as context:
        first = publish_snapshots(context, run_id)
        # The stage still ends with the run, not with its last snapshot.
        context.built(run_id, "0" * 64, found=True)
    with StageContext(cycle_id, "train_policy") as context:
        assert publish_snapshots(context, run_id) == first
    with Session(engine) as session, session.begin():
        assert session.scalar(select(func.count()).select_from(t.Artifact)) == 3
        found = snapshots_of(session, run_id)
        assert [artifact.id for artifact in found] == first
        assert found[1].results == {"version": 2, "samples": 256, "kl_nats": 4.0, "score": 3.0}
        assert (store.fetch(found[0].digest) / "config.json").read_text() == json.dumps({"weights": "snapshots/01"})
        # As everywhere: it can meet others, is served then, counts for its cycle, and leads back to its run.
        one, two = (get_contestant(session, artifact.digest[7:19]) for artifact in found)
        open_pairing(session, "model_comparison", one.id, two.id)
        assert served(session).policies == {artifact.digest for artifact in found}
        assert _cycles(session, {found[0].digest}) == {found[0].digest: number}
        upstream = lineage(session, str(first[0])).upstream()
        assert [node.key for node in upstream] == [f"artifact:{run_id}"]
    engine.dispose()


def test_an_experiment_s_stage_leaves_no_row_but_its_artifacts(
    database_url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    store = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache")
    engine = create_engine(database_url)
    with Session(engine) as session, session.begin():
        cycle_id = add_cycle(session, config={}).id
        run_id = add_run(session, store, tmp_path / "run", cycle_id)
    with StageContext(parse_config(CONFIG), "train_policy") as context:
        assert context.config.initial_policy.path == "x"
        [snapshot_id, _] = publish_snapshots(context, run_id)
        context.record_evaluation("policy", snapshot_id, {"pm_score": 1.0})
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(t.Stage)) == 1  # of the run itself
        assert session.get_one(t.Artifact, snapshot_id).cycle_id is None
        assert session.scalars(select(t.Evaluation.cycle_id)).all() == [None]
    engine.dispose()
