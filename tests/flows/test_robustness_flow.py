"""The robustness experiment on a tiny world: run here with a real Postgres, and found when it is run again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from db import tables as t
from flows.robustness import halves
from flows.running import InProcess
from orchestrator import robustness, stages
from orchestrator.artifacts import ArtifactStore
from orchestrator.config import CycleConfig, load_config
from orchestrator.errors import CycleError
from orchestrator.lineage import lineage
from tests.flows.conftest import run_command, write_comparisons

SETTINGS = ["ppo.snapshots=1", "ppo.learning_rate=0.003", "ppo.iterations=5", "ppo.kl_coef=0"]


def run(config: CycleConfig) -> tuple[str, list[str]]:
    said: list[str] = []
    markdown = asyncio.run(halves(config, InProcess(said.append)))
    return markdown, said


@pytest.mark.slow
def test_both_preference_models_judge_the_way_and_it_is_found_again(
    database_url: str, home: Path, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    config: CycleConfig = load_config(config_file, SETTINGS)
    with pytest.raises(CycleError, match="no comparison set to split"):
        run(config)
    file = write_comparisons(tmp_path / "comparisons.jsonl", 0, 120)
    run_command(home, "import", "--question", "helpful", "--source", "tiny", str(file), DATABASE_URL=database_url)
    # A cycle that has frozen, and goes on with its own work at another time.
    cycle_id = stages.open_cycle(config)
    comparison_set_id = stages.freeze_comparisons(cycle_id)
    markdown, said = run(config)
    assert said.count("evaluate_policy") == 3  # the initial policy, the snapshot, the result
    assert markdown.startswith("# Robustness: tiny")
    assert "data:image/png;base64," in markdown

    engine = create_engine(database_url)
    with Session(engine) as session:
        [report] = session.scalars(select(t.Artifact).where(t.Artifact.kind == robustness.KIND))
        halves_of = report.results["preference_models"]
        # Both see the same held-out comparisons, and together every training one once.
        counted = session.get_one(t.Artifact, comparison_set_id).results
        assert halves_of["training PM"]["num_train"] + halves_of["test PM"]["num_train"] == counted["num_train"]
        first, snapshot, result = report.results["policies"]
        assert first["gap"]["mean"] == first["training_gain"]["mean"] == first["kl_nats"] == 0.0
        assert 0 < snapshot["samples"] < result["samples"] == 40
        assert result["kl_nats"] != 0.0
        assert result["gap"]["mean"] == pytest.approx(
            result["training_gain"]["mean"] - result["test_gain"]["mean"], abs=1e-9
        )
        # From the report back to the comparisons, and no trace in what is the cycle's.
        assert f"artifact:{comparison_set_id}" in {node.key for node in lineage(session, str(report.id)).upstream()}
        assert session.scalars(select(t.Stage.name)).all() == ["freeze_comparisons"]
        artifacts = session.scalar(select(func.count()).select_from(t.Artifact))
        folder = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache").fetch(report.digest)
    numbers = json.loads((folder / "report.json").read_text())
    assert all(point["score_watcher"] is not None for point in numbers["curve"])
    assert (folder / "gap.png").read_bytes()[:4] == b"\x89PNG"

    again, _ = run(config)
    assert again == markdown
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(t.Artifact)) == artifacts
    engine.dispose()
