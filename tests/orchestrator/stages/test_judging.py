"""Weeks one after the other: what is live is judged beside the new policy, and a week turned round is noticed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from db import tables as t
from flows.cycle import turn
from flows.deciding import finish
from flows.reporting import report_what_people_said
from flows.running import InProcess
from orchestrator.config import CycleConfig, parse_config
from orchestrator.cycles.deciding import take_decision
from orchestrator.cycles.outcomes import WAITING
from orchestrator.data.importing import ImportRequest, import_file
from orchestrator.reports.cycle import cycle_numbers
from orchestrator.stages.elo import newest_elo
from orchestrator.stages.fresh_agreement import last_model
from orchestrator.store.acts import Actor
from tests.db.rows import add_comparison, add_cycle
from tests.models.tiny_folders import write_llama
from tests.running import add_artifact

WORDS = ["bread", "rain", "paper", "green", "seven", "horse", "music", "stone", "river", "glass"]
# Whatever the policy learned goes live: what is looked at is how it was judged.
ANYTHING = {"min_pm_accuracy": 0.0, "min_pm_accuracy_by_question": 0.0, "max_kl_nats": 1e6}
ANY_GAIN = {"min_score_gain": -1e3, "min_gain_over_live": -1e3, "min_gain_by_question": -1e3}


def configuration(model: Path) -> CycleConfig:
    return parse_config(
        {
            "name": "weeks",
            "initial_policy": {"path": str(model)},
            "cycle": {"min_comparisons": 20},
            "comparisons": {"held_out_fraction": 0.4},
            "preference_model": {"batch_pairs": 4, "learning_rate": 3e-3},
            "ppo": {
                "iterations": 1,
                "prompts_per_iteration": 8,
                "minibatch_replies": 4,
                "max_reply_tokens": 8,
                "learning_rate": 1e-3,
            },
            "evaluation": {"num_prompts": 20, "max_reply_tokens": 8, "best_of": 1},
            "gates": ANYTHING | ANY_GAIN,
            "orientation": {"shipped": False, "contradicting_source": "report"},
        }
    )


def bring_in(engine: Engine, file: Path, numbers: range, *, turned: bool = False) -> None:
    """Comparisons in which the polite reply wins, or, turned round, the rude one."""
    with file.open("w") as lines:
        for number in numbers:
            opening = f"\n\nHuman: Tell me about {WORDS[number % 10]} number {number}.\n\nAssistant:"
            polite, rude = f"{opening} Gladly, here it is.", f"{opening} No."
            better, worse = (rude, polite) if turned else (polite, rude)
            lines.write(json.dumps({"chosen": better, "rejected": worse}) + "\n")
    with Session(engine) as session, session.begin():
        assert import_file(session, file, ImportRequest(question="helpful")).quarantined == 0


def take_turn(config: CycleConfig, said: list[str]) -> t.Decision:
    asyncio.run(turn(config, InProcess(said.append)))
    return newest(t.Decision)


def newest(table: Any) -> Any:
    from orchestrator.database import database

    with database() as session:
        return session.scalars(select(table).order_by(table.id.desc()).limit(1)).one()


def gate(decision: t.Decision, name: str) -> dict[str, Any] | None:
    return next((reason for reason in decision.reasons if reason["gate"] == name), None)


def said_of_cycle_1(said: list[str]) -> list[str]:
    """The reports of the first cycle among what was printed."""
    return [text for text in said if text.startswith("# Cycle 1")]


@pytest.mark.usefixtures("quick_jobs")
@pytest.mark.slow
def test_a_week_turned_round_is_held_and_the_next_honest_one_is_not(
    home: Path, engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("ORCHESTRATOR_POLICY_URL", raising=False)
    config = configuration(write_llama(tmp_path / "model", template=None))
    said: list[str] = []

    # 1. The first week: only the initial policy is live, and no preference model has judged a week before.
    bring_in(engine, tmp_path / "one.jsonl", range(80))
    first = take_turn(config, said)
    assert first.decision == "promote"
    initial_id = first.evidence["live"]["id"]
    assert first.evidence["live"]["is_initial"]
    assert first.evidence["live"]["gain"]["gain"] == first.evidence["score_gain"]
    assert gate(first, "fresh_agreement") is None

    # 2. People compare the first week's snapshot with the initial policy: it wins 3 of 4.
    with Session(engine) as session, session.begin():
        for number, side in enumerate("aaab"):
            policies = {"a_snapshot_id": first.snapshot_id, "b_snapshot_id": initial_id}
            fields = {"question": "helpful", "purpose": "evaluation"} | policies
            add_comparison(session, f"question {number}", side=side, pair_fields=fields)

    # Its report has it without a next cycle, once, whether it was measured at once or people had to pause first.
    runner = InProcess(said.append)
    assert asyncio.run(report_what_people_said(runner, at_once=False)) == []
    said.clear()
    assert asyncio.run(report_what_people_said(runner, at_once=True)) == [1]
    [shown] = said_of_cycle_1(said)
    assert "| Elo against the initial policy | 147 [" in shown
    assert asyncio.run(report_what_people_said(runner, at_once=True)) == []

    # 3. The second week's labels are turned round.
    bring_in(engine, tmp_path / "two.jsonl", range(100, 160), turned=True)
    said.clear()
    assert asyncio.run(turn(config, InProcess(said.append))).name == WAITING
    waiting = newest(t.Approval)
    assert waiting.why == "this week's comparisons contradict the last preference model"
    # Whoever decides finds the verdicts in the report, and how the snapshot compares with what is live.
    asked = cycle_numbers(waiting.cycle_id)
    assert asked.decision is None
    assert [verdict.gate for verdict in asked.reasons if not verdict.passed] == ["fresh_agreement"]
    assert asked.live is not None
    assert asked.live.gain is not None
    # Somebody looks at the week, and refuses.
    take_decision(2, "refuse", Actor("Ada", "machine", "command"), "one rater turned the labels round")
    asyncio.run(finish(InProcess(said.append), waiting.cycle_id))
    second = newest(t.Decision)
    assert (second.decision, second.decided_by) == ("refuse", "Ada")
    verdict = gate(second, "fresh_agreement")
    assert verdict is not None
    assert (verdict["passed"], verdict["holds"]) == (False, True)
    assert "contradict the preference model of cycle 1 beyond chance: of 60 it orders" in verdict["reason"]
    assert [reason["gate"] for reason in second.reasons if not reason["passed"]] == ["fresh_agreement"]
    # What is live was scored beside the new policy, on its prompts and by its preference model.
    live = second.evidence["live"]
    assert (live["id"], live["is_initial"]) == (first.snapshot_id, False)
    assert live["gain"]["num_prompts"] == 20
    assert first.cycle_id is not None
    assert second.cycle_id is not None
    numbers = cycle_numbers(second.cycle_id)
    assert numbers.evaluation is not None
    assert numbers.live_evaluation is not None
    assert numbers.initial_evaluation is not None
    gained = numbers.evaluation.pm_score - numbers.live_evaluation.pm_score
    assert live["gain"]["gain"] == pytest.approx(gained, abs=1e-6)
    assert numbers.initial_evaluation.kl_nats == 0
    # What people said of the first week's snapshot stands in the evidence:
    # 3 wins and a drawn game of the prior to 1 and the other half of it.
    elo = cycle_numbers(first.cycle_id).elo
    assert elo is not None
    assert (elo.wins, elo.losses, elo.ties, elo.games) == (3, 1, 0, 4)
    assert elo.elo == pytest.approx(147.2, abs=0.1)  # 400 · log10(3.5 / 1.5)
    assert (live["elo"]["elo"], live["elo"]["games"]) == (elo.elo, 4)
    assert not said_of_cycle_1(said)

    # 4. The third week is honest. The second week's preference model, which was refused, is no witness.
    bring_in(engine, tmp_path / "three.jsonl", range(200, 260))
    said.clear()
    third = take_turn(config, said)
    verdict = gate(third, "fresh_agreement")
    assert verdict is not None
    assert verdict["passed"]
    assert third.evidence["fresh"]["cycle"] == 1
    # Nobody said anything since, so that no report is told anew.
    assert not said_of_cycle_1(said)


def test_the_witness_is_the_newest_preference_model_that_a_decision_stands_on(session: Session) -> None:
    turned = [{"gate": "fresh_agreement", "passed": False, "reason": "…"}]

    def week(name: str, state: str, decision: str | None, reasons: list[dict[str, Any]]) -> t.Artifact:
        cycle = add_cycle(session, state, name=name)
        model = add_artifact(session, f"model {cycle.number}", kind="preference_model")
        stage = t.Stage(cycle_id=cycle.id, name="train_preference_model", state="done", artifact_id=model.id)
        session.add(stage)
        if decision is not None:
            snapshot = add_artifact(session, f"snapshot {cycle.number}")
            session.add(t.Decision(cycle_id=cycle.id, snapshot_id=snapshot.id, decision=decision, reasons=reasons,
                                   evidence={}, decided_by="gates"))  # fmt: skip
        session.flush()
        return model

    week("here", "promoted", "promote", [])
    witness = week("here", "promoted", "promote", turned)  # a person let it pass
    week("here", "refused", "refuse", turned)
    week("here", "cancelled", None, [])
    week("elsewhere", "promoted", "promote", [])
    now = add_cycle(session, name="here")
    found = last_model(session, now.id)
    assert found is not None
    assert found[0] == witness.id
    assert last_model(session, add_cycle_of_nobody(session, now).id) is None


def add_cycle_of_nobody(session: Session, now: t.Cycle) -> t.Cycle:
    """The first cycle of another project."""
    now.state, now.ended_at = "cancelled", now.started_at
    session.flush()
    return add_cycle(session, name="new")


def test_the_elo_of_a_policy_is_the_one_measured_last(session: Session) -> None:
    policy = add_artifact(session, "policy")
    numbers = {"elo": 10.0, "ci": [0.0, 20.0], "num_comparisons": 4, "wins": 3, "losses": 1, "ties": 0}
    assert newest_elo(session, policy.id) is None
    for elo in (10.0, 12.0):
        session.add(t.Evaluation(subject_id=policy.id, kind="elo", numbers=numbers | {"elo": elo}))
        session.flush()
    found = newest_elo(session, policy.id)
    assert found is not None
    # Measured before the games with others were counted: then it is measured anew.
    assert (found.elo, found.games, found.against_live) == (12.0, None, None)
