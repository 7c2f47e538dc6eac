"""Whole cycles without Prefect, on imported comparisons and on models as people publish them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine
from flows.cycle import turn
from flows.running import InProcess, Outcome
from orchestrator.artifacts import ArtifactStore
from orchestrator.config import CycleConfig, parse_config
from orchestrator.errors import CycleError, JobFailed
from orchestrator.importing import ImportRequest, import_file
from orchestrator.report import cycle_numbers
from tests.models.conftest import write_llama, write_qwen2

WORDS = ["bread", "rain", "paper", "green", "seven", "horse", "music", "stone", "river", "glass"]


def write_comparisons(file: Path, first: int, count: int) -> Path:
    """hh-rlhf records in which the polite reply wins; each has an opening message of its own."""
    with file.open("w") as lines:
        for number in range(first, first + count):
            opening = f"\n\nHuman: Tell me about {WORDS[number % 10]} number {number}.\n\nAssistant:"
            record = {"chosen": f"{opening} Gladly, here it is.", "rejected": f"{opening} No."}
            lines.write(json.dumps(record) + "\n")
    return file


def configuration(model: Path, **changes: Any) -> CycleConfig:
    """The smallest cycle that does everything."""
    raw: dict[str, Any] = {
        "name": "small",
        "initial_policy": {"path": str(model)},
        "cycle": {"min_comparisons": 20},
        "preference_model": {"batch_pairs": 8},
        "ppo": {
            "iterations": 2,
            "prompts_per_iteration": 8,
            "minibatch_replies": 4,
            "max_reply_tokens": 8,
            "learning_rate": 1e-3,
        },
        "evaluation": {"num_prompts": 8, "max_reply_tokens": 8, "best_of": 2},
        "serving": {"max_reply_tokens": 8},
    }
    for section, values in changes.items():
        raw[section] = raw.get(section, {}) | values
    return parse_config(raw)


@pytest.fixture
def instance(home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instance without services: a database and a home."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("ORCHESTRATOR_POLICY_URL", raising=False)
    return database_url


def bring(url: str, file: Path, *, held_out: bool = False) -> None:
    engine = make_engine(url)
    with Session(engine) as session, session.begin():
        import_file(session, file, ImportRequest(question="helpful", split="held_out" if held_out else None))
    engine.dispose()


def take_turn(config: CycleConfig, said: list[str] | None = None) -> Outcome:
    return asyncio.run(turn(config, InProcess((said if said is not None else []).append)))


def rows(url: str, table: type[t.Base]) -> list[Any]:
    engine = make_engine(url)
    with Session(engine) as session:
        found = list(session.scalars(select(table).order_by(next(iter(table.__table__.primary_key)))))
    engine.dispose()
    return found


@pytest.mark.parametrize(
    "family", ["llama without template", pytest.param("qwen2 without pad token", marks=pytest.mark.slow)]
)
def test_a_model_passes_a_cycle_by_configuration_alone(family, instance, home, tmp_path):
    model = tmp_path / "model"
    if family.startswith("llama"):
        write_llama(model, template=None)
    else:
        tokenizer = write_qwen2(model) / "tokenizer_config.json"
        published = json.loads(tokenizer.read_text())
        del published["pad_token"]
        tokenizer.write_text(json.dumps(published))
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)

    evaluation = tmp_path / "an evaluation.csv"
    # The first is the opening message of a comparison, but for case and punctuation; the second is in none.
    evaluation.write_text("question\ntell me about bread number 0\nTell me about bread number 77777.\n")
    said: list[str] = []
    outcome = take_turn(configuration(model, comparisons={"check_against": [str(evaluation)]}), said)

    assert outcome.name in ("Promoted", "Refused")
    (cycle,) = rows(instance, t.Cycle)
    assert (cycle.number, cycle.state) == (1, outcome.name.lower())
    numbers = cycle_numbers(cycle.id)
    # The hash takes some of the 40 dialogues into the held-out part, where all 30 of the pinned file are.
    assert numbers["comparison_set"]["num_comparisons"] == 70
    assert numbers["preference_model"]["held_out"]["n"] == numbers["comparison_set"]["num_held_out"] >= 30
    assert numbers["training"]["optimiser_steps"] > 0
    assert numbers["evaluation"]["kl_nats"] > 0
    assert numbers["initial_evaluation"]["kl_nats"] == 0
    assert numbers["elo"] is None
    (overlap,) = numbers["data_check"]["against"]
    assert (overlap["comparisons"], overlap["texts_met"], overlap["texts"]) == (1, 1, 2)
    assert f"| Overlap with {tmp_path.name}/an evaluation.csv | 1 prompts, 1 comparisons" in said[-1]
    assert "| Opening messages in both parts | 0 |" in said[-1]
    assert "not judged by people" in said[-1]
    # The report is over when it is read, and so is the stage that wrote it.
    assert "| running |" not in said[-1]
    # In a terminal pictures would be pages of letters; the artifact has them.
    assert "data:" not in said[-1]
    (report,) = [artifact for artifact in rows(instance, t.Artifact) if artifact.kind == "report"]
    files = ArtifactStore(f"file://{home}/artifacts", home / "cache").fetch(report.digest)
    shown = re.findall(r"\]\((\w+\.png)\)", (files / "report.md").read_text())
    assert {"reliability.png", "score_histograms.png", "policy_scores.png"} <= set(shown)
    assert {path.name for path in files.glob("*.png")} == set(shown)
    assert {stage.state for stage in rows(instance, t.Stage)} == {"done"}
    assert "**Stopped**" not in said[-1]


def test_a_cycle_that_the_orientation_check_stops_is_reported_with_pictures_and_reason(instance, home, tmp_path):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    # Pairs that say the opposite of the comparisons: the short reply is the better one.
    pairs = [
        {"prompt": f"Tell me about {word}.", "chosen": "No.", "rejected": "Gladly, here it is.", "question": "helpful"}
        for word in WORDS
    ]
    file = tmp_path / "orientation.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = configuration(
        write_llama(tmp_path / "model", template=None),
        orientation={"file": str(file)},
        preference_model={"learning_rate": 2e-3},
    )
    said: list[str] = []

    # The second run stops as the first did, and finds the report.
    for _ in range(2):
        with pytest.raises(CycleError, match="A sign is wrong: of the 10 orientation pairs") as stopped:
            take_turn(config, said)
        assert said[-1].startswith("# Cycle 1: small")
        assert f"**Stopped**: {stopped.value}" in said[-1]
        assert "| Orientation check | 0% of 10 pairs |" in said[-1]
    (cycle,) = rows(instance, t.Cycle)
    assert cycle.state == "open"
    (report,) = [artifact for artifact in rows(instance, t.Artifact) if artifact.kind == "report"]
    files = ArtifactStore(f"file://{home}/artifacts", home / "cache").fetch(report.digest)
    shown = re.findall(r"\]\((\w+\.png)\)", (files / "report.md").read_text())
    assert {"reliability.png", "score_histograms.png"} <= set(shown) == {path.name for path in files.glob("*.png")}
    assert "train_policy" not in {stage.name for stage in rows(instance, t.Stage)}


def test_too_few_comparisons_skip_the_week_and_leave_the_live_policy(instance, tmp_path):
    config = configuration(write_llama(tmp_path / "model", template=None))

    assert take_turn(config).name == "Week 0"
    bring(instance, write_comparisons(tmp_path / "few.jsonl", 0, 12))
    outcome = take_turn(config)

    assert outcome.name == "Skipped: 12 of 20"
    assert [cycle.number for cycle in rows(instance, t.Cycle)] == [0]
    (deployment,) = rows(instance, t.Deployment)
    assert deployment.ended_at is None


@pytest.mark.slow
def test_identical_weights_are_refused_by_name_and_the_live_policy_stays(instance, tmp_path):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    config = configuration(write_llama(tmp_path / "model", template=None), ppo={"learning_rate": 0})

    outcome = take_turn(config)

    assert outcome.name == "Refused"
    assert "KL 0: identical to the initial policy" in outcome.message
    (deployment,) = rows(instance, t.Deployment)
    initial = next(a for a in rows(instance, t.Artifact) if a.kind == "initial_policy")
    assert (deployment.snapshot_id, deployment.ended_at) == (initial.id, None)
    # The refused snapshot is put before people all the same.
    (pairing,) = rows(instance, t.Pairing)
    met = {contestant.id: contestant.snapshot_id for contestant in rows(instance, t.Contestant)}
    assert met[pairing.contestant_b_id] == initial.id


@pytest.mark.slow
def test_a_failed_stage_is_gone_on_from_and_nothing_is_repeated(instance, tmp_path, monkeypatch):
    from orchestrator import stage as stage_module

    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    config = configuration(write_llama(tmp_path / "model", template=None))
    real = stage_module.run_job

    def failing(name: str, **rest: Any) -> Any:
        if name == "train_policy":
            raise JobFailed("Job train_policy was ended by SIGKILL.")
        return real(name, **rest)

    monkeypatch.setattr(stage_module, "run_job", failing)
    with pytest.raises(JobFailed):
        take_turn(config)
    # A dead job is gone on with: the report comes at the end.
    assert "report" not in {artifact.kind for artifact in rows(instance, t.Artifact)}
    # What arrives now belongs to the next cycle: the cut-off is kept.
    bring(instance, write_comparisons(tmp_path / "late.jsonl", 5000, 25))
    monkeypatch.setattr(stage_module, "run_job", real)
    take_turn(config)

    (cycle,) = rows(instance, t.Cycle)
    assert cycle.state in ("promoted", "refused")
    assert cycle_numbers(cycle.id)["comparison_set"]["num_comparisons"] == 70
    states: dict[str, list[str]] = {}
    for stage in rows(instance, t.Stage):
        states.setdefault(stage.name, []).append(stage.state)
    assert states["train_preference_model"] == ["done", "found"]
    assert states["train_policy"] == ["failed", "done"]
    assert states["freeze_comparisons"] == ["done", "found"]
