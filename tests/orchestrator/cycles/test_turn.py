"""Whole cycles without Prefect, on imported comparisons and on models as people publish them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine
from flows.cycle import turn
from flows.deciding import finish
from flows.reporting import reported_if_stopped
from flows.running import InProcess
from orchestrator.cli import main
from orchestrator.config import CycleConfig, parse_config
from orchestrator.cycles import deciding
from orchestrator.cycles.outcomes import Outcome
from orchestrator.data.importing import ImportRequest, import_file
from orchestrator.data.pair_set import SHIPPED
from orchestrator.errors import ArtifactError, ConfigError, CycleError, JobFailed
from orchestrator.reports.cycle import cycle_numbers
from orchestrator.stages import context as stage_module
from orchestrator.store import approvals
from orchestrator.store.acts import Actor
from orchestrator.store.artifacts import ArtifactStore
from tests.models.tiny_folders import write_llama, write_qwen2

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
        # So small a model has no common sense, and asking it costs a job.
        "orientation": {"shipped": False},
    }
    for section, values in changes.items():
        raw[section] = raw.get(section, {}) | values
    return parse_config(raw)


@pytest.fixture
def instance(home: Path, database_url: str, quick_jobs: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instance without services: a database and a home."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("ORCHESTRATOR_POLICY_URL", raising=False)
    return database_url


def let_training_die(monkeypatch: pytest.MonkeyPatch, message: str) -> Callable[[], None]:
    """End PPO's job with this message, and run every other; gives what lets it live again."""
    real = stage_module.run_job

    def run(name: str, **rest: Any) -> Any:
        if name == "train_policy":
            raise JobFailed(message)
        return real(name, **rest)

    monkeypatch.setattr(stage_module, "run_job", run)
    return lambda: monkeypatch.setattr(stage_module, "run_job", real)


def bring(url: str, file: Path, *, question: str = "helpful", held_out: bool = False) -> None:
    engine = make_engine(url)
    with Session(engine) as session, session.begin():
        import_file(session, file, ImportRequest(question=question, split="held_out" if held_out else None))
    engine.dispose()


def take_turn(config: CycleConfig, said: list[str] | None = None) -> Outcome:
    return asyncio.run(turn(config, InProcess((said if said is not None else []).append)))


def rows(url: str, table: type[t.Base]) -> list[Any]:
    engine = make_engine(url)
    with Session(engine) as session:
        found = list(session.scalars(select(table).order_by(next(iter(table.__table__.primary_key)))))
    engine.dispose()
    return found


def initial_digest(url: str) -> str:
    return next(artifact.digest for artifact in rows(url, t.Artifact) if artifact.kind == "initial_policy")


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
    assert numbers.comparison_set is not None
    assert numbers.comparison_set.num_comparisons == 70
    assert numbers.preference_model is not None
    assert numbers.preference_model.held_out.n == numbers.comparison_set.num_held_out >= 30
    assert numbers.training is not None
    assert numbers.training.optimiser_steps > 0
    assert numbers.evaluation is not None
    assert numbers.evaluation.kl_nats > 0
    assert numbers.initial_evaluation is not None
    assert numbers.initial_evaluation.kl_nats == 0
    assert numbers.elo is None
    assert numbers.data_check is not None
    (overlap,) = numbers.data_check.against
    assert (overlap.comparisons, overlap.texts_met, overlap.texts) == (1, 1, 2)
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
    stops = [line for line in said[-1].splitlines() if line.startswith("**Stopped**")]
    assert [line[:33] for line in stops] == ["**Stopped** at `decide_promotion`"] * (outcome.name == "Refused")


def test_a_cycle_that_the_orientation_check_stops_is_reported_with_pictures_and_reason(
    instance, home, tmp_path, capsys
):
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
        assert f"**Stopped** at `check_preference_model` by the check of signs: {stopped.value}\n" in said[-1]
        assert f"- Kept: the live policy `{initial_digest(instance)}` answers raters as before; finished" in said[-1]
        again = (
            "- Next: put right what is named and run the cycle again, or give it up with `orchestrator cycle cancel 1`."
        )
        assert again in said[-1]
        assert "| Orientation check | 0% of 10 pairs |" in said[-1]
    (cycle,) = rows(instance, t.Cycle)
    assert cycle.state == "open"
    (report,) = [artifact for artifact in rows(instance, t.Artifact) if artifact.kind == "report"]
    files = ArtifactStore(f"file://{home}/artifacts", home / "cache").fetch(report.digest)
    shown = re.findall(r"\]\((\w+\.png)\)", (files / "report.md").read_text())
    capsys.readouterr()
    assert main(["cycle", "show", str(cycle.number)]) == 0
    assert capsys.readouterr().out.endswith(f"\nThe pictures: {files}\n")
    assert {"reliability.png", "score_histograms.png"} <= set(shown) == {path.name for path in files.glob("*.png")}
    assert "train_policy" not in {stage.name for stage in rows(instance, t.Stage)}


def test_labels_turned_round_everywhere_stop_a_cycle_that_says_nothing_of_orientation(instance, tmp_path):
    for question in ("helpful", "harmless"):
        file = tmp_path / f"{question}.jsonl"
        with SHIPPED.open() as pairs, file.open("w") as lines:
            for pair in map(json.loads, pairs):
                if pair["question"] != question:
                    continue
                prompt, better, worse = (pair[side][0]["content"] for side in ("prompt", "chosen", "rejected"))
                for number in range(6):
                    opening = f"\n\nHuman: {prompt} ({number})\n\nAssistant: "
                    lines.write(json.dumps({"chosen": opening + worse, "rejected": opening + better}) + "\n")
        bring(instance, file, question=question)
    config = configuration(
        write_llama(tmp_path / "model", template=None),
        orientation={"shipped": True},
        preference_model={"learning_rate": 3e-3},
    )

    with pytest.raises(CycleError, match="orientation pairs that come with the orchestrator") as stopped:
        take_turn(config)
    # All sources agree with each other: nothing else could have told.
    assert "held-out comparisons" not in str(stopped.value)


def test_a_cycle_that_a_crash_ends_late_and_then_a_check_is_reported_both_times(instance, home, tmp_path, monkeypatch):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    config = configuration(write_llama(tmp_path / "model", template=None))
    said: list[str] = []
    revive = let_training_die(
        monkeypatch, "Job train_policy was ended by SIGKILL. The end of its log:\nppo 1 of 2\n```\nppo 2 of 2"
    )
    with pytest.raises(JobFailed, match="ended by SIGKILL"):
        take_turn(config, said)
    revive()
    reason = "**Stopped** at `train_policy` by a crash (JobFailed): Job train_policy was ended by SIGKILL. The end of"
    # A fence within the log does not end the one around it.
    assert f"{reason} its log:\n\n```\nppo 1 of 2\n'''\nppo 2 of 2\n```\n\n- Kept: the live policy" in said[-1]
    assert "- Next: run the cycle again; it goes on from the last checkpoint." in said[-1]
    assert "| PM held-out accuracy | " in said[-1]
    assert [cycle.state for cycle in rows(instance, t.Cycle)] == ["open"]

    # Somebody edits the prompts in the store: the next attempt at the same stage refuses.
    (prompts,) = [artifact for artifact in rows(instance, t.Artifact) if artifact.kind == "prompt_set"]
    for folder in (home / "artifacts", home / "cache"):
        for file in folder.rglob("*.jsonl"):
            if prompts.digest.removeprefix("sha256:") in str(file):
                file.chmod(0o644)
                file.write_text("")
    with pytest.raises(ArtifactError) as refused:
        take_turn(config, said)
    assert f"**Stopped** at `train_policy` by the check of the artifacts: {refused.value}\n" in said[-1]
    assert len([artifact for artifact in rows(instance, t.Artifact) if artifact.kind == "report"]) == 2


def test_a_tripped_wire_and_a_refusal_tell_what_is_kept_and_what_to_do(instance, tmp_path):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    # The first steps go beyond the limit, so that the last good weights are those of the initial policy.
    config = configuration(write_llama(tmp_path / "model", template=None), ppo={"max_kl_nats": 1e-6})
    said: list[str] = []

    assert take_turn(config, said).name == "Refused"
    # What did not promote is not called so.
    assert "promote" not in said
    assert "promote" not in {stage.name for stage in rows(instance, t.Stage)}

    (snapshot,) = [artifact for artifact in rows(instance, t.Artifact) if artifact.kind == "snapshot"]
    told = said[-1].splitlines()
    ppo, gates = (number for number, line in enumerate(told) if line.startswith("**Stopped**"))
    assert told[ppo].startswith("**Stopped** at `train_policy` by the limit `ppo.max_kl_nats`: KL ")
    assert told[ppo].endswith(" nats was above max_kl_nats 1e-06 in iteration 2")
    assert told[ppo + 2] == (
        f"- Kept: the last good weights, those of the start, are the snapshot `{snapshot.digest}`, evaluated and gated "
        "like any other."
    )
    assert told[ppo + 3].startswith("- Next: lower `ppo.learning_rate` (it was ")
    assert told[gates].startswith("**Stopped** at `decide_promotion` by the gates ")
    assert "`kl`" in told[gates]
    assert "it has not moved away from the initial policy" in told[gates]
    assert told[gates + 2].startswith(f"- Kept: the live policy `{initial_digest(instance)}` answers raters as before;")
    assert told[gates + 2].endswith(
        "has the initial policy's weights, so that raters are not asked to compare the two."
    )
    assert all(pairing.cycle_id is None for pairing in rows(instance, t.Pairing))
    assert "`kl`: at 0 raise `ppo.learning_rate` or `ppo.iterations`" in told[gates + 3]


def test_a_report_that_cannot_be_written_does_not_hide_what_ended_the_run(instance):
    async def ended() -> None:
        async with reported_if_stopped(InProcess([].append), 999):
            raise JobFailed("Job train_policy was ended by SIGKILL.")

    with pytest.raises(JobFailed, match="ended by SIGKILL") as error:
        asyncio.run(ended())
    assert error.value.__notes__ == [
        "The cycle's report could not be written: NoResultFound: No row was found when one was required"
    ]


def test_too_few_comparisons_skip_the_week_and_leave_the_live_policy(instance, tmp_path):
    config = configuration(write_llama(tmp_path / "model", template=None))

    assert take_turn(config).name == "Week 0"
    bring(instance, write_comparisons(tmp_path / "few.jsonl", 0, 12))
    outcome = take_turn(config)

    assert outcome.name == "Skipped: 12 of 20"
    assert [cycle.number for cycle in rows(instance, t.Cycle)] == [0]
    (deployment,) = rows(instance, t.Deployment)
    assert deployment.ended_at is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"initial_policy": {"path": "/no/such/model"}}, r"initial_policy\.path names /no/such/model, which is no dir"),
        ({"initial_policy": {"path": "nobody/nothing"}}, "neither a directory nor a model that can be had"),
        (
            {"initial_policy": {"path": None, "pretrain": {"files": ["/no/such/text"]}}},
            r"initial_policy\.pretrain\.files names /no/such/text, which is no file",
        ),
        ({"prompts": {"train_file": "/no/such"}}, r"prompts\.train_file names /no/such, which is no file"),
        (
            {"ppo": {"lora_rank": 2, "lora_layers": ["q_proj", "lm_head", "q"]}},
            r"ppo\.lora_layers names lm_head, q; the initial policy's layers are down_proj, gate_proj, k_proj, o_proj, "
            r"q_proj, up_proj, v_proj\.",
        ),
    ],
)
def test_a_cycle_that_cannot_run_is_not_opened(instance, tmp_path, changes, says):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 20))
    config = configuration(write_llama(tmp_path / "model", template=None), **changes)

    with pytest.raises(ConfigError, match=says):
        take_turn(config)

    assert rows(instance, t.Cycle) == []


@pytest.mark.slow
def test_identical_weights_are_refused_by_name_and_the_live_policy_stays(instance, tmp_path):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    config = configuration(write_llama(tmp_path / "model", template=None), ppo={"learning_rate": 0})

    outcome = take_turn(config)

    assert outcome.name == "Refused"
    assert "it has not moved away from the initial policy" in outcome.message
    (deployment,) = rows(instance, t.Deployment)
    initial = next(a for a in rows(instance, t.Artifact) if a.kind == "initial_policy")
    assert (deployment.snapshot_id, deployment.ended_at) == (initial.id, None)
    # Raters are not asked to compare it with itself.
    assert all(pairing.cycle_id is None for pairing in rows(instance, t.Pairing))


@pytest.mark.slow
def test_a_failed_stage_is_gone_on_from_and_nothing_is_repeated(instance, tmp_path, monkeypatch):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    config = configuration(write_llama(tmp_path / "model", template=None))
    revive = let_training_die(monkeypatch, "Job train_policy was ended by SIGKILL.")
    with pytest.raises(JobFailed):
        take_turn(config)
    # What arrives now belongs to the next cycle: the cut-off is kept.
    bring(instance, write_comparisons(tmp_path / "late.jsonl", 5000, 25))
    revive()
    take_turn(config)

    (cycle,) = rows(instance, t.Cycle)
    assert cycle.state in ("promoted", "refused")
    numbers = cycle_numbers(cycle.id)
    assert numbers.comparison_set is not None
    assert numbers.comparison_set.num_comparisons == 70
    states: dict[str, list[str]] = {}
    for stage in rows(instance, t.Stage):
        states.setdefault(stage.name, []).append(stage.state)
    assert states["train_preference_model"] == ["done", "found"]
    assert states["train_policy"] == ["failed", "done"]
    # What stopped it on the way is over: the last report tells of the gates alone.
    assert {stop.stage for stop in numbers.stops} <= {"decide_promotion"}
    assert states["freeze_comparisons"] == ["done", "found"]


@pytest.mark.slow
def test_a_cycle_with_nothing_fresh_and_another_gate_trains_nothing_again(instance, tmp_path):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    model = write_llama(tmp_path / "model", template=None)
    take_turn(configuration(model))
    take_turn(configuration(model, cycle={"min_comparisons": 0}, gates={"max_kl_nats": 7.0}))

    first, second = (cycle.id for cycle in sorted(rows(instance, t.Cycle), key=lambda cycle: cycle.number))
    stages = [stage for stage in rows(instance, t.Stage) if stage.cycle_id == second]
    trained = {"train_preference_model", "build_prompts", "train_policy", "evaluate_policy"}
    assert {(stage.name, stage.state) for stage in stages if stage.name in trained} == {
        (name, "found") for name in trained
    }
    sets = [cycle_numbers(each).digests["comparison_set"] for each in (first, second)]
    assert sets[0] == sets[1]
    # Last week's model is not asked about comparisons that it was trained on.
    assert "check_fresh_agreement" not in {stage.name for stage in stages if stage.artifact_id is not None}


@pytest.mark.parametrize("how", ["promote", pytest.param("expired", marks=pytest.mark.slow)])
def test_a_cycle_that_asks_a_person_waits_and_then_ends_as_decided(instance, tmp_path, capsys, how):
    bring(instance, write_comparisons(tmp_path / "train.jsonl", 0, 40))
    bring(instance, write_comparisons(tmp_path / "dev.jsonl", 1000, 30), held_out=True)
    open_gates = {"min_pm_accuracy": 0.0, "min_score_gain": -1e3, "min_gain_over_live": -1e3, "max_kl_nats": 1e9}
    config = configuration(
        write_llama(tmp_path / "model", template=None), gates=open_gates, approval={"required": True}
    )

    for _ in range(2):  # The next run of the cycle waits as well, and repeats nothing.
        outcome = take_turn(config)
        assert outcome.name == "Waiting for approval"
        assert "the configuration wants a person's word" in outcome.message
        assert "`orchestrator cycle decide 1 promote|refuse --reason TEXT`" in outcome.message
    (approval,) = rows(instance, t.Approval)
    assert {reason["gate"] for reason in approval.reasons} >= {"pm_accuracy", "kl", "score_gain"}
    (deployment,) = rows(instance, t.Deployment)
    assert main(["live"]) == 0
    assert "Waits for a decision: cycle 1, snapshot " in capsys.readouterr().out

    said: list[str] = []
    if how == "promote":
        deciding.take_decision(1, "promote", Actor("Ada", "claimed", "prefect"), "shorter answers")
        with pytest.raises(CycleError, match=r"decided already: Ada \(as typed into a form\) promoted it"):
            deciding.take_decision(1, "refuse", Actor("Bob", "proven", "desk"), "no")
    else:
        monday = approval.expires_at
        assert approval.expires_at - approval.created_at < timedelta(hours=49)
        with deciding.database() as session:
            assert len(approvals.expire(session, monday)) == 1
    (cycle_id,) = deciding.to_finish()
    outcome = asyncio.run(finish(InProcess(said.append), cycle_id))

    (cycle,) = rows(instance, t.Cycle)
    after = rows(instance, t.Deployment)
    if how == "promote":
        assert (outcome.name, cycle.state) == ("Promoted", "promoted")
        assert [one.ended_at is None for one in after] == [False, True]
        assert after[1].preference_model_id is not None
        main(["live"])
        printed = capsys.readouterr().out
        assert "Why: approved: shorter answers; all " in printed
        assert "Decided by: Ada (as typed into a form)\n" in printed
    else:
        assert (outcome.name, cycle.state) == ("Refused", "refused")
        assert outcome.message.startswith("Promotion refused: nobody decided until ")
        assert [one.id for one in after] == [deployment.id]
        assert "**Stopped** at `decide_promotion` by nobody, in time: nobody decided until " in said[-1]
    assert asyncio.run(finish(InProcess(said.append), cycle_id)).name == outcome.name
    assert deciding.to_finish() == []
