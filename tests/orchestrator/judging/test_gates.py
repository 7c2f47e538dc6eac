"""The gates: which number stops a snapshot, and what the operator reads."""

from dataclasses import replace

import pytest

from orchestrator.config import GatesSection
from orchestrator.judging.gates import Evidence, judge

GOOD = Evidence(
    pm_accuracy=0.70,
    pm_accuracy_ci=(0.64, 0.75),
    num_held_out=200,
    score_gain=0.40,
    score_gain_ci=(0.30, 0.50),
    kl_nats=2.5,
)
GATES = GatesSection(min_pm_accuracy=0.5, min_score_gain=0.0, max_kl_nats=10.0)


def failed(evidence: Evidence) -> list[str]:
    return [verdict.reason for verdict in judge(GATES, evidence) if not verdict.passed]


def test_good_evidence_passes_every_gate():
    assert failed(GOOD) == []


def test_unchanged_weights_are_refused_by_name():
    assert failed(replace(GOOD, kl_nats=0.0)) == ["KL 0: identical to the initial policy"]


def test_kl_beyond_the_cap_names_both_numbers():
    assert failed(replace(GOOD, kl_nats=12.34)) == ["KL 12.34 nats per reply exceeds gates.max_kl_nats = 10"]


def test_the_accuracys_reason_counts_dialogues_where_they_are_known():
    [reason] = [v.reason for v in judge(GATES, replace(GOOD, num_dialogues=80)) if v.gate == "pm_accuracy"]
    assert "(n = 200 from 80 dialogues)" in reason
    [reason] = [v.reason for v in judge(GATES, GOOD) if v.gate == "pm_accuracy"]
    assert "(n = 200)" in reason


@pytest.mark.parametrize("low", [0.5, 0.49])
def test_interval_that_touches_chance_is_refused(low):
    (reason,) = failed(replace(GOOD, pm_accuracy=0.55, pm_accuracy_ci=(low, 0.61)))
    assert reason.startswith("PM held-out accuracy 0.550")
    assert "gates.min_pm_accuracy = 0.5" in reason


def test_gain_must_be_above_the_bound_with_its_whole_interval():
    (reason,) = failed(replace(GOOD, score_gain=0.05, score_gain_ci=(-0.01, 0.11)))
    assert "score gain over the initial policy +0.050 [-0.010, +0.110]" in reason


def test_no_held_out_comparison_is_no_evidence():
    (reason,) = failed(replace(GOOD, pm_accuracy=None, pm_accuracy_ci=None, num_held_out=0))
    assert "no held-out comparison" in reason


def test_collapse_gates_are_off_unless_given():
    collapsed = replace(GOOD, duplicate_share=0.9, refusal_share=0.9)
    assert failed(collapsed) == []
    gates = GatesSection(max_kl_nats=10.0, max_duplicate_share=0.5, max_refusal_share=0.25)
    assert [verdict.reason for verdict in judge(gates, collapsed) if not verdict.passed] == [
        "90.0% of replies equal another one, which is above gates.max_duplicate_share = 0.5",
        "90.0% of ordinary requests are refused, which is above gates.max_refusal_share = 0.25",
    ]
    at_the_bound = replace(GOOD, duplicate_share=0.5, refusal_share=0.25)
    assert all(verdict.passed for verdict in judge(gates, at_the_bound))


def test_a_collapse_gate_without_a_number_is_no_evidence():
    (verdict,) = [v for v in judge(GatesSection(max_refusal_share=0.25), GOOD) if v.gate == "refusals"]
    assert not verdict.passed
