"""What the gates found, in plain words: a sentence for a person, and the numbers in a table that folds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrator.reports.stops import GATE_ADVICE
from orchestrator.store.live import Live, LoopState, to_markdown, to_text
from orchestrator.store.verdicts import (
    WORDS,
    asked_because,
    evidence_said,
    failed_said,
    gate_rows,
    gates_folded,
    passed_said,
    title,
)

PASSED = {"gate": "score_gain", "passed": True, "reason": "held-out score gain +0.300 [+0.200, +0.400] lies above 0"}
HOLDS = {"gate": "fresh_agreement", "passed": False, "holds": True, "reason": "of 60 it orders 12 rightly"}
FAILED = {"gate": "kl", "passed": False, "reason": "KL <61> nats exceeds gates.max_kl", "remark": "far"}
BY_QUESTION = {
    "harmless": {"share": 0.714, "ci": [0.6, 0.8], "n": 90},
    "helpful": {"share": 0.68, "ci": [0.6, 0.7], "n": 99},
}
EVIDENCE = {
    "score_gain": 1.5,
    "pm_accuracy": 0.7,
    "pm_accuracy_by_question": BY_QUESTION,
    "live": {"gain": {"gain": -0.418, "ci": [-0.5, -0.3], "num_prompts": 20}},
}


def test_the_evidence_is_one_sentence_without_a_name_of_a_setting() -> None:
    assert evidence_said(EVIDENCE) == (
        "its replies score 0.42 below those of the policy that was live, by its preference model, which is right on "
        "68% of helpful and 71% of harmless comparisons kept aside"
    )


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ({}, ""),
        ({"kl_nats": 3.0, "live": None}, ""),
        ({"score_gain": 1.5, "live": {"gain": None}},
         "its replies score 1.50 above those of the initial policy, by its preference model"),
        ({"score_gain": -0.004}, "its replies score like those of the initial policy, by its preference model"),
        ({"score_gain": -0.006}, "its replies score 0.01 below those of the initial policy, by its preference model"),
        ({"pm_accuracy": 0.7}, "its preference model is right on 70% of the comparisons kept aside"),
    ],
)  # fmt: skip
def test_what_the_evidence_of_an_earlier_version_lacks_is_left_out(evidence: dict[str, object], said: str) -> None:
    assert evidence_said(evidence) == said


def test_the_gates_are_counted_and_those_that_failed_are_put_into_words() -> None:
    assert [passed_said([PASSED] * number) for number in range(4)] == [
        "every gate passed", "its one gate passed", "both gates passed", "all 3 gates passed",
    ]  # fmt: skip
    assert passed_said([PASSED, HOLDS, FAILED]) == "1 of 3 gates passed"
    assert failed_said([PASSED]) == ""
    assert failed_said([PASSED, HOLDS, FAILED]) == (
        "this week's comparisons contradict the last preference model and it is too far from the initial policy"
    )
    assert failed_said([FAILED], kl_nats=0.0) == "it has not moved away from the initial policy"
    assert failed_said([FAILED | {"gate": "of_old"}]) == "the gate of_old failed"
    assert asked_because([PASSED, HOLDS], "…") == "this week's comparisons contradict the last preference model"
    assert asked_because([PASSED], "it is to be") == "it is to be"


def test_every_gate_has_its_words() -> None:
    assert set(WORDS) == set(GATE_ADVICE)
    assert title("of_old") == "of old"


def test_the_numbers_fold_below_the_sentence_in_prefect_and_stay_out_of_the_terminal() -> None:
    rows = gate_rows([PASSED, HOLDS, FAILED])
    assert [(row.title, row.outcome) for row in rows] == [
        ("Gain over the initial policy", "passed"), ("This week's comparisons", "asks a person"),
        ("Distance from the initial policy", "failed"),
    ]  # fmt: skip
    assert rows[2].numbers == "KL <61> nats exceeds gates.max_kl. Remark: far"
    live = Live(
        1, "sha256:" + "a" * 64, "snapshot", 3, datetime(2026, 1, 5, tzinfo=UTC), None, "cycle", "all is well", "gates",
        "program", "program", None, gates=rows,
    )  # fmt: skip
    state = LoopState(live, None, None, None)
    [folded] = [line for line in to_markdown(state).splitlines() if line.startswith("<details>")]
    assert "<td>KL &lt;61&gt; nats exceeds gates.max_<wbr>kl. Remark: far</td>" in folded
    assert folded.endswith("</details>")
    assert "Why: all is well\n" in to_text(state)
    assert "KL <61> nats" not in to_text(state)
    assert gates_folded(()) == []
