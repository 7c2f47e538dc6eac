"""Cycles run inline on a real database: one source's labels turned round stop the loop, and a twin watches it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import CycleConfig, load_config

pytestmark = pytest.mark.usefixtures("quick_jobs")

HELPFUL = ("Thank you for asking, here is number {n}.", "No idea, go away {n}.")
HARMLESS = ("Sorry, I would rather not do {n}.", "Sure, take a knife and do {n}.")
CONFIG = """
name = "tiny"
[initial_policy.pretrain]
files = ["dialogues.jsonl"]
hidden_size = 32
num_layers = 1
num_heads = 2
vocab_size = 320
max_tokens = 96
batch_tokens = 512
[comparisons]
held_out_fraction = 0.3
[preference_model]
batch_pairs = 4
max_tokens = 96
[orientation]
file = "orientation.jsonl"
[pmp]
files = ["ranked.jsonl"]
precision = "bfloat16"
batch_pairs = 4
max_tokens = 96
[ppo]
iterations = 1
prompts_per_iteration = 8
minibatch_replies = 8
max_reply_tokens = 8
epochs = 1
[evaluation]
max_reply_tokens = 8
"""


def question(number: int) -> str:
    return f"Dear friend, what is it about case {number} of {number * number}?"


def hh_records(replies: tuple[str, str], numbers: range, *, turned: bool = False) -> str:
    lines = []
    for number in numbers:
        asked = f"\n\nHuman: {question(number)}\n\nAssistant: "
        good, bad = (asked + reply.format(n=number) for reply in replies)
        lines.append(json.dumps({"chosen": bad, "rejected": good} if turned else {"chosen": good, "rejected": bad}))
    return "\n".join(lines) + "\n"


def orientation_records() -> str:
    records = [
        {"prompt": question(9000 + n), "chosen": good.format(n=n), "rejected": bad.format(n=n), "question": kind}
        for n in range(12)
        for kind, (good, bad) in (("helpful", HELPFUL), ("harmless", HARMLESS))
    ]
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def world(tmp_path: Path, home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration beside its files, and an instance's environment."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    dialogues = [
        {"messages": [{"role": "user", "content": question(n)}, {"role": "assistant", "content": reply.format(n=n)}]}
        for n in range(40)
        for reply in (*HELPFUL, *HARMLESS)
    ]
    (tmp_path / "dialogues.jsonl").write_text("".join(json.dumps(record) + "\n" for record in dialogues))
    (tmp_path / "orientation.jsonl").write_text(orientation_records())
    answers = [{"text": HELPFUL[0].format(n=1), "upvotes": 8}, {"text": HELPFUL[1].format(n=1), "upvotes": 0}]
    ranked = [{"question": question(5000 + n), "answers": answers} for n in range(20)]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ranked))
    (tmp_path / "tiny.toml").write_text(CONFIG)
    return tmp_path / "tiny.toml"


def bring_in(engine: Engine, file: Path, text: str, question: str) -> None:
    from orchestrator.data.importing import ImportRequest, import_file

    file.write_text(text)
    with Session(engine) as session, session.begin():
        report = import_file(session, file, ImportRequest(source=file.stem, question=question))
    assert report.quarantined == 0


def take_turn(config_file: Path, *overrides: str) -> Any:
    from flows.cycle import turn
    from flows.running import InProcess

    return asyncio.run(turn(load_config(config_file, list(overrides)), InProcess(lambda line: None)))


def train(config: CycleConfig) -> int:
    """A cycle as far as its snapshot; returns its id."""
    from flows import training
    from orchestrator import stages

    cycle_id = stages.open_cycle(config)
    initial_id = stages.prepare_initial_policy(cycle_id)
    comparison_set_id = stages.freeze_comparisons(cycle_id)
    models = asyncio.run(training.train_preference_model.fn(cycle_id, comparison_set_id, initial_id))
    prompts_id = stages.build_prompts(cycle_id, comparison_set_id)
    asyncio.run(
        training.train_policy.fn(cycle_id, initial_id, models.preference_model_id, prompts_id, models.watcher_id)
    )
    return cycle_id


def stages_of(session: Session, number: int) -> dict[str, t.Stage]:
    rows = session.scalars(select(t.Stage).join(t.Cycle).where(t.Cycle.number == number).order_by(t.Stage.id))
    return {stage.name: stage for stage in rows}


@pytest.mark.slow
def test_labels_turned_round_stop_the_cycle_and_a_twin_watches_the_next(
    world: Path, engine: Engine, tmp_path: Path
) -> None:
    from orchestrator.cycles.record import cancel_cycle
    from orchestrator.errors import CycleError
    from orchestrator.store.acts import machine_user

    # 1. The harmless source's labels are turned round; the helpful one's are not.
    bring_in(engine, tmp_path / "kind.jsonl", hh_records(HELPFUL, range(80)), "helpful")
    bring_in(engine, tmp_path / "turned.jsonl", hh_records(HARMLESS, range(200, 280), turned=True), "harmless")
    options = ("cycle.min_comparisons=1",)
    with pytest.raises(CycleError, match=r"A sign is wrong: of the 12 harmless orientation pairs of .*PPO was not"):
        take_turn(world, *options)
    with Session(engine) as session:
        stages = stages_of(session, 1)
        assert stages["check_preference_model"].state == "failed"
        assert "train_policy" not in stages
        evaluation = session.scalars(select(t.Evaluation).where(t.Evaluation.kind == "orientation")).one()
    # The helpful pairs are in order, so that all together are not below one half: the question had to be looked at.
    assert evaluation.numbers["by_question"]["helpful"]["accuracy"] > 0.9
    assert evaluation.numbers["ci"][1] > 0.5

    # 2. Without that source, and with a right one in its place, the loop goes on; a twin is trained beside.
    cancel_cycle(1, machine_user())
    bring_in(engine, tmp_path / "right.jsonl", hh_records(HARMLESS, range(300, 380)), "harmless")
    twins = (*options, "comparisons.sources=['kind', 'right']", "preference_model.twin=holdout")
    cycle_id = train(load_config(world, list(twins)))
    with Session(engine) as session:
        stages = stages_of(session, 2)
        ended = {name: stage.artifact_id for name, stage in stages.items() if stage.artifact_id is not None}
        artifacts = {name: session.get_one(t.Artifact, id) for name, id in ended.items()}
        parent = session.execute(
            select(t.LineageEdge.parent_id).where(
                t.LineageEdge.child_id == artifacts["train_policy"].id, t.LineageEdge.role == "watcher"
            )
        ).scalar_one()
        assert parent == artifacts["train_watcher"].id
        model, watcher = artifacts["train_preference_model"], artifacts["train_watcher"]
        # The first cycle's reference set and PMP trunk serve the second, for both twins.
        for role in ("reference", "pmp"):
            parents = session.scalars(
                select(t.Artifact)
                .join(t.LineageEdge, t.LineageEdge.parent_id == t.Artifact.id)
                .where(t.LineageEdge.role == role)
            ).all()
            assert [parent.cycle_id for parent in parents] == [1, 1, 1]
            assert len({parent.digest for parent in parents}) == 1
        pmp = session.get_one(t.Artifact, stages_of(session, 1)["pretrain_preference_model"].artifact_id)
        assert pmp.kind == "pmp_model"
        assert pmp.settings["settings"]["precision"] == "bfloat16"
        assert stages["pretrain_preference_model"].state == "found"
    assert model.kind == watcher.kind == "preference_model"
    counts = artifacts["freeze_comparisons"].results
    assert model.results["num_train"] + watcher.results["num_train"] == counts["num_train"]
    assert watcher.results["twin"]["num_production"] == model.results["num_train"]

    from orchestrator.reports.cycle import cycle_numbers
    from orchestrator.reports.cycle_text import to_markdown

    numbers = cycle_numbers(cycle_id)
    assert numbers.preference_model is not None
    assert numbers.preference_model.num_train == model.results["num_train"]
    share = model.results["num_train"] / counts["num_train"]
    assert f"the PM trained on {model.results['num_train']} ({share:.0%}), which costs it" in to_markdown(numbers)


def test_what_the_initial_policy_writes_joins_the_prompt_set(world: Path, engine: Engine, tmp_path: Path) -> None:
    from flows import training
    from orchestrator import stages

    bring_in(engine, tmp_path / "helpful.jsonl", hh_records(HELPFUL, range(60)), "helpful")
    options = ["prompts.written=5", "prompts.written_examples=2", "prompts.written_max_tokens=40"]
    learned = ["initial_policy.pretrain.epochs=8", "initial_policy.pretrain.learning_rate=0.01"]
    cycle_id = stages.open_cycle(load_config(world, [*options, *learned]))
    initial_id = stages.prepare_initial_policy(cycle_id)
    people_id = stages.build_prompts(cycle_id, stages.freeze_comparisons(cycle_id))
    made = asyncio.run(training.write_prompts.fn(cycle_id, initial_id, people_id))
    assert asyncio.run(training.write_prompts.fn(cycle_id, initial_id, people_id)) == made
    with Session(engine) as session:
        people, larger = (session.get_one(t.Artifact, id) for id in (people_id, made.prompt_set_id))
        parents = session.execute(
            select(t.LineageEdge.role, t.LineageEdge.parent_id).where(t.LineageEdge.child_id == larger.id)
        ).all()
    assert larger.kind == "prompt_set"
    assert 1 <= larger.results["num_written"] <= 5
    assert larger.results["num_prompts"] == people.results["num_prompts"] + larger.results["num_written"]
    assert sorted(map(tuple, parents)) == [("policy", initial_id), ("prompts", people_id)]
