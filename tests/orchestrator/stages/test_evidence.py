"""What the gates are shown: gains over prompts that are turns of the same dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from models.policy.results import JudgedReply
from orchestrator.config import GatesSection
from orchestrator.judging.gates import Evidence, judge
from orchestrator.stages.evidence import paired_gain

GATES = GatesSection(min_pm_accuracy=0.5, min_score_gain=0.0, max_kl_nats=10.0)


def replies(scores: Sequence[float], dialogues: Sequence[int | None]) -> dict[str, JudgedReply]:
    """An evaluation's replies to prompts 0, 1, …; of before dialogues were written down where they are None."""
    return {
        str(number): JudgedReply(
            str(number), "helpful", [{"role": "user", "content": f"Hello {number}"}], "", float(score), 0.0, 1,
            truncated=False, dialogue=dialogue,
        )
        for number, (score, dialogue) in enumerate(zip(scores, dialogues, strict=True))
    }  # fmt: skip


def test_a_gain_over_turns_of_two_dialogues_is_as_sure_as_two_dialogues_are() -> None:
    # Gains 1, 2, 3, 4, the first two of one dialogue: 2.5 ± 12.706 (tests/models/statistics/test_intervals.py).
    before = replies([0.0] * 4, [0, 0, 1, 1])
    gain = paired_gain(replies([1, 2, 3, 4], [0, 0, 1, 1]), before)
    assert gain is not None
    assert (gain.gain, gain.num_prompts) == (2.5, 4)
    assert gain.ci == pytest.approx((2.5 - 12.7062, 2.5 + 12.7062), abs=1e-4)
    # As many dialogues as prompts: standard error 0.6455, Student's t of 3 is 3.1824.
    apart = paired_gain(replies([1, 2, 3, 4], [0, 1, 2, 3]), before)
    assert apart is not None
    assert apart.ci == pytest.approx((2.5 - 2.0543, 2.5 + 2.0543), abs=1e-4)
    alone = paired_gain(replies([1, 2, 3, 4], [7] * 4), before)
    assert alone is not None
    assert alone.ci == (None, None)


def test_an_evaluation_of_before_dialogues_were_written_down_is_read_by_its_openings() -> None:
    turns = replies([1, 2, 3, 4], [None] * 4)
    opened = {
        key: replace(reply, messages=[{"role": "user", "content": text}, *reply.messages[1:]])
        for (key, reply), text in zip(turns.items(), ["Hi, there!", "hi there", "Bye", "bye."], strict=True)
    }
    old = paired_gain(opened, replies([0.0] * 4, [None] * 4))
    assert old == paired_gain(replies([1, 2, 3, 4], [0, 0, 1, 1]), replies([0.0] * 4, [0, 0, 1, 1]))
    # Prompts without an opening share nothing that is known.
    bare = {key: replace(reply, messages=[]) for key, reply in turns.items()}
    assert paired_gain(bare, bare) == paired_gain(turns, turns)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
def test_the_gate_on_the_score_passes_a_policy_without_gain_as_seldom_as_it_says(correlation: float) -> None:
    # Nominally 2.5 % of 400 pass: 10, and more than 20 once in 700 times. Taken as independent, some 40 at 0.3 and
    # 70 at 0.8 would (`python -m benchmarks.gain_intervals`).
    numbers = np.random.default_rng(20261130)
    passed = 0
    for _ in range(400):
        sizes = numbers.geometric(0.3, 30)
        dialogues = np.repeat(np.arange(30), sizes)
        shared = np.sqrt(correlation) * numbers.normal(size=30)[dialogues]
        own = np.sqrt(1 - correlation) * numbers.normal(size=len(dialogues))
        named = [int(dialogue) for dialogue in dialogues]
        gain = paired_gain(replies(shared + own, named), replies([0.0] * len(named), named))
        assert gain is not None
        verdicts = judge(GATES, Evidence(0.7, (0.6, 0.8), 100, gain.gain, gain.ci, 1.0))
        passed += next(verdict.passed for verdict in verdicts if verdict.gate == "score_gain")
    assert passed <= 20
