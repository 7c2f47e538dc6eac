"""Context distillation through its stages: what the teacher said is stored once, for students of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator import stages
from orchestrator.config import CycleConfig, parse_config
from orchestrator.stages import context as stage_module
from orchestrator.store.artifacts import ArtifactStore
from tests.models.tiny_folders import TEXT, write_llama

pytestmark = pytest.mark.usefixtures("quick_jobs")


def configuration(student: Path, teacher: Path, texts: Path, prompt: Path) -> CycleConfig:
    distill = {
        "files": [str(texts)],
        "prompt_file": str(prompt),
        "teacher": str(teacher),
        "tokens": 1500,
        "max_tokens": 40,
        "held_out_texts": 8,
        "batch_texts": 8,
        "reference_learning_rate": 3e-3,
        "learning_rate_multiple": 0.5,
    }
    return parse_config({"name": "students", "initial_policy": {"path": str(student), "distill": distill}})


@pytest.mark.slow
def test_a_student_of_another_size_finds_what_the_teacher_said(
    home: Path, database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    texts, prompt = tmp_path / "texts.jsonl", tmp_path / "prompt.md"
    sentences = [sentence.strip() for text in TEXT for sentence in text.split(".") if sentence.strip()]
    texts.write_text("".join(json.dumps({"text": f"{one} {other}"}) + "\n" for one in sentences for other in sentences))
    prompt.write_text("Be kind.\n\n---\n\nHuman: Hi\n\nAssistant: Hello!\n")
    teacher = write_llama(tmp_path / "teacher", template=None)
    small = write_llama(tmp_path / "small", template=None, hidden=32, seed=1)
    ran: list[str] = []
    real = stage_module.run_job

    def noted(name: str, **rest: Any) -> Any:
        ran.append(name)
        return real(name, **rest)

    monkeypatch.setattr(stage_module, "run_job", noted)
    # The first student is as big as its teacher, of which it begins as a copy.
    made = [stages.prepare_initial_policy(configuration(s, teacher, texts, prompt)) for s in (teacher, small)]

    first = ["prepare_policy", "make_distillation_set", "distill_student"]
    assert ran == [*first, "prepare_policy", "distill_student"]
    with Session(engine) as session:
        sets = session.scalars(select(t.Artifact.id).where(t.Artifact.kind == "distillation_set")).all()
        roles = select(t.LineageEdge.parent_id).where(t.LineageEdge.role == "distillation_set")
        parents = [session.scalars(roles.where(t.LineageEdge.child_id == id)).one() for id in made]
        students = [session.get_one(t.Artifact, id) for id in made]
    assert parents == [sets[0], sets[0]]
    assert len(sets) == 1
    store = ArtifactStore(f"file://{home}/artifacts", home / "cache")
    sizes = [json.loads((store.fetch(one.digest) / "config.json").read_text())["hidden_size"] for one in students]
    assert sizes == [64, 32]
    # Both have moved towards what the teacher says; the small one comes from other weights, so from further away.
    before, after = ([one.results[f"held_out_kl_{when}"] for one in students] for when in ("before", "after"))
    assert before[0] < before[1]
    assert all(late < early for early, late in zip(before, after, strict=True))
