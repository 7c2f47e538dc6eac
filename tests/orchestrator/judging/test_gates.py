"""The gates: which number stops a snapshot, and what the operator reads."""

from dataclasses import replace

import pytest

from orchestrator.config import GatesSection
from orchestrator.judging.agreement import Part
from orchestrator.judging.gates import Evidence, FreshEvidence, Gain, LiveEvidence, Share, Verdict, judge, outcome

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


def test_a_gain_on_a_single_dialogue_promotes_nothing_and_refuses_nothing_either():
    unknown = Gain(0.4, (None, None), 12)
    (reason,) = failed(replace(GOOD, score_gain_ci=(None, None)))
    assert reason == (
        "held-out score gain over the initial policy +0.400 [?, ?]: prompts of a single dialogue don't tell whether it "
        "lies above gates.min_score_gain = 0"
    )
    live = LiveEvidence(1, "sha256:1", False, unknown, {"helpful": unknown})
    beside = replace(GOOD, live=live, score_gain_by_question={"helpful": unknown})
    assert failed(beside) == []
    assert "over the live policy +0.400 [?, ?]" in " ".join(verdict.reason for verdict in judge(GATES, beside))


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


def verdict(gate: str, evidence: Evidence, gates: GatesSection = GATES) -> Verdict:
    (found,) = [verdict for verdict in judge(gates, evidence) if verdict.gate == gate]
    return found


def beside_live(gain: float, low: float, high: float) -> Evidence:
    return replace(GOOD, live=LiveEvidence(7, "sha256:ab", False, Gain(gain, (low, high), 240)))


def test_a_snapshot_surely_worse_than_the_live_policy_is_refused():
    (reason,) = failed(beside_live(-0.30, -0.41, -0.19))
    assert reason == (
        "held-out score gain over the live policy -0.300 [-0.410, -0.190] lies below gates.min_gain_over_live = 0"
    )


def test_a_tie_with_the_live_policy_goes_live_with_a_remark():
    assert failed(beside_live(-0.02, -0.10, 0.06)) == []
    remark = verdict("live_gain", beside_live(-0.02, -0.10, 0.06)).remark
    assert remark == "the snapshot's score is -0.020 from the live policy's: it may be worse"
    assert verdict("live_gain", beside_live(0.02, -0.06, 0.10)).remark is None
    # Who wants a gain of 0.1 refuses one that is surely smaller.
    assert not verdict("live_gain", beside_live(0.02, -0.06, 0.09), GatesSection(min_gain_over_live=0.1)).passed


def test_a_live_policy_that_cant_be_scored_is_a_remark():
    found = verdict("live_gain", replace(GOOD, live=LiveEvidence(7, "sha256:ab", False)))
    assert found.passed
    assert found.remark is not None
    assert "began from another initial policy" in found.remark


def test_a_question_that_surely_lost_is_refused_and_named():
    gains = {"helpful": Gain(0.5, (0.4, 0.6), 160), "harmless": Gain(-0.2, (-0.3, -0.1), 80)}
    (reason,) = failed(replace(GOOD, score_gain_by_question=gains))
    assert reason == (
        "held-out score gain by question: harmless, over the initial policy, -0.200 [-0.300, -0.100]: below "
        "gates.min_gain_by_question = 0"
    )
    live = LiveEvidence(7, "sha256:ab", False, Gain(0.1, (0.0, 0.2), 240), gains)
    unsure = {"helpful": Gain(0.5, (0.4, 0.6), 160), "harmless": Gain(-0.1, (-0.3, 0.1), 80)}
    (reason,) = failed(replace(GOOD, score_gain_by_question=unsure, live=live))
    assert "harmless, over the live policy, -0.200" in reason
    remark = verdict("gain_by_question", replace(GOOD, score_gain_by_question=unsure)).remark
    assert remark == (
        "the score may have fallen on a question: harmless, over the initial policy, -0.100 [-0.300, +0.100]"
    )


def test_a_pm_that_is_right_on_38_percent_of_a_question_goes_live_with_a_remark_and_surely_wrong_not_at_all():
    helpful = Share(0.72, (0.66, 0.78), 210)
    few = {"helpful": helpful, "harmless": Share(0.38, (0.259, 0.518), 50)}
    found = verdict("pm_accuracy_by_question", replace(GOOD, pm_accuracy_by_question=few))
    assert found.passed
    assert (
        found.remark
        == "the PM is right on fewer than 50% of harmless 0.380 [0.259, 0.518] (n = 50): too few to be sure"
    )
    many = {"helpful": helpful, "harmless": Share(0.38, (0.316, 0.449), 200)}
    (reason,) = failed(replace(GOOD, pm_accuracy_by_question=many))
    assert reason == (
        "PM held-out accuracy harmless 0.380 [0.316, 0.449] (n = 200) lies below "
        "gates.min_pm_accuracy_by_question = 0.5"
    )


TURNED = Part(0.70, (0.62, 0.77), 0.36, 0.476, 100)


def test_a_week_that_contradicts_waits_for_a_person_unless_another_gate_refuses():
    evidence = replace(GOOD, fresh=FreshEvidence(4, {"all": TURNED, "harmless": TURNED}))
    (reason,) = failed(evidence)
    assert reason == (
        "this week's comparisons contradict the preference model of cycle 4 beyond chance: of 100 it orders 36% as "
        "people did (at most 48%), held out 70%; of 100 harmless it orders 36% as people did (at most 48%), held out "
        "70%: a person has to decide"
    )
    assert outcome(judge(GATES, evidence)) == "hold"
    assert outcome(judge(GATES, replace(evidence, kl_nats=0.0))) == "refuse"
    assert outcome(judge(GATES, GOOD)) == "promote"
    reporting = GatesSection(max_kl_nats=10.0, contradicting_week="report")
    found = verdict("fresh_agreement", evidence, reporting)
    assert found.passed
    assert found.remark == reason.removesuffix(": a person has to decide")


def test_a_week_on_which_the_last_pm_fell_is_a_remark():
    fell = Part(0.70, (0.62, 0.77), 0.52, 0.557, 1000)
    found = verdict("fresh_agreement", replace(GOOD, fresh=FreshEvidence(4, {"all": fell})))
    assert found.passed
    assert found.remark is not None
    assert "worse than its own" in found.remark


def test_what_says_nothing_is_not_stored_with_a_verdict():
    assert Verdict("kl", False, "why").to_json() == {"gate": "kl", "passed": False, "reason": "why"}
    assert Verdict("kl", True, "why", "but").to_json()["remark"] == "but"


def test_every_gate_says_its_answer_and_its_numbers():
    gain = Gain(0.5, (0.4, 0.6), 160)
    evidence = replace(
        GOOD,
        duplicate_share=0.25,
        refusal_share=0.125,
        pm_accuracy_by_question={"helpful": Share(0.72, (0.66, 0.78), 210)},
        score_gain_by_question={"helpful": gain},
        live=LiveEvidence(7, "sha256:ab", False, Gain(0.1, (0.0, 0.2), 240), {"helpful": gain}),
        fresh=FreshEvidence(4, {"all": Part(0.70, (0.62, 0.77), 0.69, 0.75, 100)}),
    )
    gates = GatesSection(min_pm_accuracy=0.5, max_kl_nats=10.0, max_duplicate_share=0.5, max_refusal_share=0.25)
    assert [(found.gate, found.passed, found.reason, found.remark) for found in judge(gates, evidence)] == [
        (
            "pm_accuracy", True,
            "PM held-out accuracy 0.700 [0.640, 0.750] (n = 200) lies above gates.min_pm_accuracy = 0.5", None,
        ),
        ("kl", True, "KL 2.5 nats per reply is within gates.max_kl_nats = 10", None),
        (
            "score_gain", True,
            "held-out score gain over the initial policy +0.400 [+0.300, +0.500] lies above gates.min_score_gain = 0",
            None,
        ),
        (
            "pm_accuracy_by_question", True,
            "PM held-out accuracy by question, helpful 0.720 [0.660, 0.780] (n = 210), does not lie below "
            "gates.min_pm_accuracy_by_question = 0.5", None,
        ),
        (
            "live_gain", True,
            "held-out score gain over the live policy +0.100 [+0.000, +0.200] does not lie below "
            "gates.min_gain_over_live = 0", None,
        ),
        (
            "gain_by_question", True,
            "held-out score gain by question: helpful, over the initial policy, +0.500 [+0.400, +0.600]; helpful, over "
            "the live policy, +0.500 [+0.400, +0.600]: not below gates.min_gain_by_question = 0", None,
        ),
        (
            "fresh_agreement", True,
            "this week's comparisons don't contradict the preference model of cycle 4: of 100 it orders 69% as people "
            "did (at most 75%), held out 70%", None,
        ),
        (
            "duplicates", True,
            "25.0% of replies equal another one, which is within gates.max_duplicate_share = 0.5", None,
        ),
        (
            "refusals", True,
            "12.5% of ordinary requests are refused, which is within gates.max_refusal_share = 0.25", None,
        ),
    ]  # fmt: skip
    assert outcome(judge(gates, evidence)) == "promote"


def test_a_gate_that_fails_says_which_it_is():
    bad = replace(
        GOOD, pm_accuracy_ci=(0.4, 0.75), kl_nats=0.0, score_gain_ci=(-0.1, 0.5), duplicate_share=0.75,
        pm_accuracy_by_question={"helpful": Share(0.3, (0.2, 0.4), 210)},
        score_gain_by_question={"helpful": Gain(-0.5, (-0.6, -0.4), 160)},
        live=LiveEvidence(7, "sha256:ab", False, Gain(-0.1, (-0.2, -0.05), 240)),
        fresh=FreshEvidence(4, {"all": TURNED}),
    )  # fmt: skip
    found = judge(GatesSection(max_duplicate_share=0.5), bad)
    assert [(verdict.gate, verdict.passed, verdict.holds) for verdict in found] == [
        ("pm_accuracy", False, False), ("kl", False, False), ("score_gain", False, False),
        ("pm_accuracy_by_question", False, False), ("live_gain", False, False), ("gain_by_question", False, False),
        ("fresh_agreement", False, True), ("duplicates", False, False),
    ]  # fmt: skip
    unknown = verdict("live_gain", replace(GOOD, live=LiveEvidence(7, "sha256:ab", False)))
    assert unknown.passed is True
    assert unknown.reason.endswith("this preference model can't score it")
    assert unknown.remark == f"{unknown.reason}: people have to compare the two"
