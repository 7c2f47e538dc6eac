"""The gates: which number stops a snapshot, and what the operator reads."""

from dataclasses import replace

import pytest

from orchestrator.config import GatesSection
from orchestrator.gates import Evidence, judge

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
