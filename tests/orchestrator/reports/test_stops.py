"""What a cycle's report says about what stopped it: every kind of stop has its stage, its check and its advice."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from prefect.states import Failed

from db import tables as t
from flows.running import _how_to_go_on
from models.policy.results import PPOResult, RaisedAlarm, Recovery, WatchResult
from orchestrator.config import parse_config
from orchestrator.judging.agreement import Part
from orchestrator.judging.gates import Evidence, FreshEvidence, Gain, LiveEvidence, Share, judge
from orchestrator.reports.stops import (
    GATE_ADVICE,
    WIRE_ADVICE,
    _ended_by,
    _ppo_stop,
    _refusal,
    _stage_stop,
    kept_iterations,
    stop_lines,
)
from tests.orchestrator.reports.policy_results import BARE_PPO, points
from tests.paths import PROJECT_ROOT

BEGAN = datetime(2026, 1, 5, tzinfo=UTC)


def attempt(number: int, name: str, state: str, error: str | None = None, ended: int | None = None) -> t.Stage:
    """A stage's row, begun in minute `number`, ended in the next or in minute `ended`."""
    ended_at = None if state == "running" else BEGAN + timedelta(minutes=ended or number + 1)
    began_at = BEGAN + timedelta(minutes=number)
    return t.Stage(id=number, name=name, state=state, error=error, started_at=began_at, ended_at=ended_at)


def test_the_stage_that_failed_last_ended_the_cycle_until_something_was_done_since():
    rows = [attempt(1, "build_prompts", "done"), attempt(2, "train_policy", "failed", "JobFailed: killed")]
    assert _ended_by(rows, None) == ("train_policy", "JobFailed: killed")
    # The report of it is no news, and neither is one that could not be written.
    rows.append(attempt(4, "write_report", "failed", "OSError: disk full"))
    assert _ended_by(rows, None) == ("train_policy", "JobFailed: killed")
    # The next run has begun: nothing stands still.
    rows.append(attempt(5, "build_prompts", "found"))
    assert _ended_by(rows, None) is None
    assert _ended_by([*rows, attempt(6, "train_policy", "done")], None) is None
    assert _ended_by([attempt(1, "write_report", "failed", "OSError: disk full")], None) == (
        "write_report",
        "OSError: disk full",
    )


def test_a_stage_whose_process_was_killed_is_known_by_what_ended_the_run():
    rows = [
        attempt(1, "train_policy", "failed", "JobFailed: killed"),
        attempt(3, "train_policy", "done"),
        attempt(4, "evaluate_policy", "running"),
    ]
    assert _ended_by(rows, None) is None
    crash = "JobFailed: evaluate-policies ended as Crashed: no sign of life"
    assert _ended_by(rows, crash) == ("evaluate_policy", crash)
    # Beside it another one ended well.
    assert _ended_by([*rows, attempt(5, "fit_ood_detector", "done")], crash) == ("evaluate_policy", crash)
    assert _ended_by(rows[:2], crash) == ("train_policy", crash)
    assert _ended_by([], crash) == ("cycle", crash)


def test_of_several_stages_at_once_the_one_whose_error_ended_the_run_is_told():
    # The second of them was still to begin when the first failed, and failed too.
    rows = [
        attempt(1, "evaluate_best_of_2", "failed", "JobRefused: no prompts"),
        attempt(3, "evaluate_policy", "failed", "ArtifactError: damaged"),
    ]
    waited = (
        "JobFailed: evaluate-policies ended as Failed: Flow run encountered an exception: JobRefused: no prompts. Run"
    )
    assert _ended_by(rows, waited) == ("evaluate_best_of_2", "JobRefused: no prompts")
    assert _ended_by(rows, "ArtifactError: damaged") == ("evaluate_policy", "ArtifactError: damaged")


def ran(iterations: int, *, stopped_by: str, alarms: list[tuple[int, str]]) -> PPOResult:
    """A run that learned from so many rollouts."""
    raised = tuple(RaisedAlarm(iteration, wire, "") for iteration, wire in alarms)
    return replace(BARE_PPO, curve=points(iterations), watch=WatchResult(stopped_by, raised))


def test_a_tripped_wire_is_told_with_its_figures_and_its_advice():
    stopped = "entropy 0.1 nats per token is 4% of the start's 2.5, below min_entropy_share 0.05 (iteration 7)"
    # Six rollouts were learned from; the seventh tripped the wire. Weights after iteration 5 wrote the sixth.
    training = ran(6, stopped_by="entropy", alarms=[(2, "entropy"), (7, "entropy")])
    stop = _ppo_stop(training, stopped, "sha256:ab")
    assert stop_lines([stop]) == [
        f"**Stopped** at `train_policy` by the tripwire `entropy`: {stopped}",
        "",
        "- Kept: the last good weights, those after iteration 5, are the snapshot `sha256:ab`, evaluated and gated "
        "like any other.",
        f"- Next: {WIRE_ADVICE['entropy']} More in docs/guides/when-it-stops.md, “Which tripwire stopped PPO, and "
        "what now?”.",
        "",
    ]
    # A snapshot from before there were wires names none.
    assert _ppo_stop(BARE_PPO, "the loss was not finite in iteration 3", "sha256:ab").by == (
        "the check that its numbers are finite"
    )


def test_a_run_that_went_too_far_at_once_is_told_to_learn_slower():
    kl = "KL 397 nats was above max_kl_nats 5 in iteration 2"
    fast = replace(BARE_PPO, settings={"learning_rate": 0.1})
    at_once = _ppo_stop(replace(fast, curve=points(1), kl_nats=0.0), kl, "sha256:ab")
    assert at_once.by == "the limit `ppo.max_kl_nats`"
    assert at_once.next.startswith("lower `ppo.learning_rate` (it was 0.1): the first steps went beyond the bound")
    assert "those of the start, are the snapshot `sha256:ab`" in at_once.kept
    later = _ppo_stop(replace(fast, curve=points(4), kl_nats=4.9), kl, "sha256:ab")
    assert later.next.startswith(WIRE_ADVICE["max_kl_nats"])
    assert "those after iteration 3," in later.kept
    # Numbers that disagree say nothing of the step: the same advice wherever it is found.
    fault = replace(fast, watch=WatchResult("first_ratio", ()), kl_nats=0.0)
    assert _ppo_stop(fault, "ratio", "sha256:ab").next.startswith(WIRE_ADVICE["first_ratio"])


def test_a_wire_that_is_looked_at_after_learning_keeps_the_weights_that_wrote_the_rollout():
    assert kept_iterations(ran(5, stopped_by="ratio", alarms=[(3, "length"), (5, "ratio")])) == 4
    # Every rollout but the first was beyond a wire.
    assert kept_iterations(ran(2, stopped_by="entropy", alarms=[(2, "entropy"), (3, "entropy")])) == 0


def test_a_run_that_recovered_before_says_how_often_and_what_it_keeps():
    back = tuple(Recovery(at, "ratio", "", 2, rate) for at, rate in ((4, 5e-5), (5, 2.5e-5)))
    training = replace(ran(4, stopped_by="ratio", alarms=[]), recoveries=back, kept_iteration=2)
    stop = _ppo_stop(training, "far (iteration 6)", "sha256:ab")
    assert stop.found == (
        "far (iteration 6); it had gone back to good weights 2 times before, the last time on at a learning rate of "
        "2.5e-05"
    )
    assert "those after iteration 2," in stop.kept
    once = replace(training, recoveries=back[:1], kept_iteration=0)
    assert "once before" in _ppo_stop(once, "far", "sha256:ab").found
    assert kept_iterations(once) == 0


@pytest.mark.parametrize("error", ["JobRefused: lora_layers names nope", "ConfigError: prompts.train_file"])
def test_a_setting_that_cannot_work_is_changed_and_not_run_again(error):
    stop = _stage_stop(t.Cycle(number=4, state="open"), "train_policy", error, "no policy was live yet", None)
    assert stop.next.startswith(
        "change the setting that is named, or put right the input; as it is, the cycle ends alike."
    )
    assert "give it up with `orchestrator cycle cancel 4`, then run a cycle anew" in stop.next
    assert "checkpoint" not in stop.next
    crash = _stage_stop(t.Cycle(number=4, state="open"), "train_policy", "JobFailed: killed", "none", None)
    assert crash.next.startswith("run the cycle again; it goes on from the last checkpoint.")


def test_a_run_on_a_pool_that_refused_is_not_to_be_run_again():
    refused, killed = (
        Failed(message=f"Flow run encountered an exception: {error}")
        for error in ("JobRefused: nope", "JobFailed: killed")
    )
    assert _how_to_go_on(refused).startswith("Run as it is, it ends alike: change what is named.")
    assert _how_to_go_on(killed) == "Run the cycle again; it goes on from the last checkpoint."


def test_a_refusal_says_whether_people_compare_the_snapshot():
    reasons = [{"gate": "kl", "passed": False, "reason": "KL out of bounds"}]
    far, same = (t.Decision(reasons=reasons, evidence={"kl_nats": kl}) for kl in (60.0, 0.0))
    assert _refusal(far, "no policy was live yet", "sha256:ab").kept == (
        "no policy was live yet; the refused snapshot `sha256:ab` is put before people beside the initial policy "
        "and what was live."
    )
    assert _refusal(same, "no policy was live yet", "sha256:ab").kept == (
        "no policy was live yet; the refused snapshot `sha256:ab` has the initial policy's weights, so that raters are "
        "not asked to compare the two."
    )


def test_every_wire_and_every_gate_has_an_advice():
    page = (PROJECT_ROOT / "docs" / "guides" / "when-it-stops.md").read_text()
    headings = [line.partition("(")[0] for line in page.splitlines() if line.startswith("### ")]
    documented = {wire for heading in headings for wire in re.findall(r"`(\w+)`", heading)}
    source = (PROJECT_ROOT / "models" / "policy" / "watch.py").read_text()
    named = set(re.findall(r'Alarm\(\s*"(\w+)"', source))
    assert named <= set(WIRE_ADVICE)
    assert documented == set(WIRE_ADVICE)
    gates = parse_config(
        {"initial_policy": {"path": "x"}, "gates": {"max_duplicate_share": 0.5, "max_refusal_share": 0.5}}
    ).gates
    part = Part(0.7, (0.6, 0.8), 0.3, 0.4, 100)
    evidence = Evidence(
        None, None, 0, 0.0, (0.0, 0.0), 1.0,
        pm_accuracy_by_question={"helpful": Share(0.7, (0.6, 0.8), 100)},
        score_gain_by_question={"helpful": Gain(0.1, (0.0, 0.2), 100)},
        live=LiveEvidence(1, "sha256:ab", is_initial=False),
        fresh=FreshEvidence(1, {"all": part}),
    )  # fmt: skip
    verdicts = judge(gates, evidence)
    assert {verdict.gate for verdict in verdicts} == set(GATE_ADVICE)
