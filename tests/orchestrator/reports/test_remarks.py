"""What contradicts a light, green or red: each rule speaks where it should, and is silent on a cycle without a flaw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.chat.refusals import RefusedRecords
from models.policy.results import PPOResult, RolloutSignals, WatchResult
from models.preference.results import LengthRegressedReport, LongerWinsReport, OrderedPairs
from models.statistics.kl_law import Bend
from orchestrator.judging.elo import EloNumbers
from orchestrator.judging.gates import Gain, LiveEvidence, Verdict
from orchestrator.judging.kl_law import CurveLaw
from orchestrator.reports.initial_policy import doubts_of
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.remarks import RULES, remarks
from tests.orchestrator.published_results import held_out_report, preference_model
from tests.orchestrator.reports.policy_results import BARE_PPO
from tests.orchestrator.reports.whole_cycle import DIGEST, accuracy, judged, whole_cycle

ORDERED = OrderedPairs(accuracy=1.0, ci=(0.9, 1.0), n=30, by_question={}, by_source={})
TWICE = RefusedRecords(count=3, first="the roles user, user: no")
FLAWLESS = whole_cycle(orientation=ORDERED, training=BARE_PPO)


def model(**held_out: Any) -> Any:
    return preference_model(held_out_report(**({"accuracy": 0.7, "ci": (0.65, 0.75), "n": 400} | held_out)))


def slope(high: float) -> Any:
    model_ = FLAWLESS.preference_model
    assert model_ is not None
    assert model_.held_out.calibration is not None
    calibration = replace(model_.held_out.calibration, slope=high - 0.2, slope_ci=(high - 0.4, high))
    return replace(model_, held_out=replace(model_.held_out, calibration=calibration))


def of_length(longer: float, left: float) -> Any:
    """A preference model with an accuracy of 0.7, beside how often longer replies win, and what is left without."""

    def part(share: float) -> dict[str, Any]:
        return {"accuracy": share, "ci": (share - 0.1, share + 0.1), "n": 400, "by_source": {}}

    return model(
        longer_wins=LongerWinsReport(**part(longer), log_odds_per_token=0.1),
        length_regressed=LengthRegressedReport(**part(left), score_per_token=0.1),
    )


def refused_comparisons() -> Any:
    assert FLAWLESS.preference_model is not None
    return replace(FLAWLESS.preference_model, refused={"train": TWICE, "held_out": TWICE})


def departed() -> CurveLaw:
    law = FLAWLESS.kl_law
    assert isinstance(law, CurveLaw)
    return replace(law, departure=Bend(2.0, 64, "below", 1.0, 0.2, -9.0, 3.0))


def elo(value: float, num: int = 200) -> EloNumbers:
    return EloNumbers(value, (value - 20, value + 20), num, 1, 1, 0)


def started_with(truncated: float) -> PPOResult:
    start = RolloutSignals(0.0, 0.0, 64, 2.0, 30.0, truncated, 0.0, 0.1, 0.05, 1.0)
    return replace(BARE_PPO, settings={"max_reply_tokens": 32}, watch=WatchResult(None, (), start))


def test_a_start_that_ends_most_of_its_replies_is_no_remark() -> None:
    assert remarks(replace(FLAWLESS, training=started_with(0.5))) == []


def test_a_cycle_without_a_flaw_has_no_remarks() -> None:
    assert remarks(FLAWLESS) == []
    assert remarks(CycleNumbers(cycle=1, name="nothing yet")) == []
    assert doubts_of({"train_loss": 1.0}) == ()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (replace(FLAWLESS, decision="refuse"), "people prefer it to the initial policy (Elo +80 [+40, +120]), yet"),
        (replace(FLAWLESS, elo=elo(-5.0)), "people prefer the initial policy (Elo -5 [-25, +15]), yet it went live"),
        (
            replace(FLAWLESS, orientation=replace(ORDERED, refused=TWICE), preference_model=refused_comparisons()),
            "the chat template refused 3 train comparisons (200 used), 3 held-out comparisons (100 used), "
            "3 orientation pairs (the first has the roles user, user: no): left out; to have them, give the model's "
            "folder a chat template",
        ),
        (
            replace(
                FLAWLESS,
                preference_model=preference_model(dropped_too_long_by_split={"train": 0, "held_out": 2}),
                training=replace(BARE_PPO, prompts_too_long=7),
                evaluation=judged(2.0, watcher_score=2.0, prompts_too_long=3),
            ),
            "too long, and left out: 2 held-out comparisons, 7 prompts of PPO, 3 prompts to judge on. The preference "
            "model reads texts of 512 tokens, prompt and reply; to have them, raise preference_model.max_tokens",
        ),
        (
            replace(FLAWLESS, preference_model=of_length(longer=0.72, left=0.5)),
            "knows no more than that longer replies win (0.720 [0.620, 0.820] of them do): without length its accuracy "
            "is 0.500 [0.400, 0.600]",
        ),
        (replace(FLAWLESS, preference_model=of_length(longer=0.28, left=0.5)), "no more than that shorter replies win"),
        (
            replace(FLAWLESS, live=LiveEvidence(7, DIGEST, False, Gain(-0.1, (-0.3, 0.1), 80))),
            "it went live with a lower score than what was live: -0.100 [-0.300, +0.100]",
        ),
        (
            replace(FLAWLESS, reasons=(Verdict("live_gain", True, "within", "the gain is below 0"),)),
            "the gain is below 0",
        ),
        (
            replace(FLAWLESS, preference_model=model(by_question={"harmless": accuracy(0.38)})),
            "the preference model is below chance on harmless comparisons: 0.380 [0.280, 0.480] of 40",
        ),
        (
            replace(FLAWLESS, initial_evaluation=judged(2.5, watcher_score=2.5)),
            "on harmless requests it scores 0.50 below the initial policy",
        ),
        # The PM sees 2 - 1, the watcher 1.4 - 1.
        (
            replace(FLAWLESS, evaluation=judged(2.0, watcher_score=1.4)),
            "the watcher sees +0.40 where the training PM sees +1.00",
        ),
        (replace(FLAWLESS, training=replace(BARE_PPO, stopped="too long")), "PPO was stopped before its end (too"),
        (
            replace(FLAWLESS, initial_evaluation=judged(1.0, truncated=0.0), evaluation=judged(2.0, truncated=0.5)),
            "replies cut off rose from 0.0% to 50.0%",
        ),
        (replace(FLAWLESS, kl_law=departed()), "beyond KL 2 nats the score grew more slowly"),
        (replace(FLAWLESS, evaluation=judged(2.0, reply_tokens=15.0)), "replies are longer: 15 tokens"),
        (replace(FLAWLESS, preference_model=slope(0.9)), "the preference model is over-confident"),
        (replace(FLAWLESS, preference_model=slope(-0.1)), "score gaps point the wrong way"),
        (replace(FLAWLESS, preference_model=model(n=99)), "rests on 99 held-out comparisons alone"),
        (replace(FLAWLESS, elo=elo(80.0, 49)), "the Elo rests on 49 comparisons"),
        (replace(FLAWLESS, orientation=None), "the orientation check was skipped"),
        (
            replace(FLAWLESS, doubts=doubts_of({"doubts": ["Most of its replies do not end."], "vocab_size": 7})),
            "the initial policy: most of its replies do not end",
        ),
        (replace(FLAWLESS, training=started_with(0.81)), "81% of the initial policy's replies were cut off at "
                                                         "ppo.max_reply_tokens = 32: from them"),
    ],
)  # fmt: skip
def test_what_contradicts_is_said(numbers: CycleNumbers, said: str) -> None:
    assert [remark for remark in remarks(numbers) if said in remark], remarks(numbers)


def test_what_a_gate_remarks_is_said_once() -> None:
    worse = replace(
        FLAWLESS,
        live=LiveEvidence(7, DIGEST, False, Gain(-0.1, (-0.3, 0.1), 80)),
        preference_model=model(by_question={"harmless": accuracy(0.38)}),
        initial_evaluation=judged(2.5, watcher_score=2.5),
        reasons=tuple(
            Verdict(gate, True, "", f"{gate} is unsure")
            for gate in ("live_gain", "pm_accuracy_by_question", "gain_by_question")
        ),
    )
    assert remarks(worse) == [
        "live_gain is unsure", "pm_accuracy_by_question is unsure", "gain_by_question is unsure",
    ]  # fmt: skip


def test_nothing_is_said_at_the_edge() -> None:
    edge = replace(
        FLAWLESS,
        preference_model=model(n=100, by_question={"harmless": accuracy(0.5)}),
        evaluation=judged(2.0, watcher_score=1.5, reply_tokens=14.9),
        elo=elo(20.5, 50),
    )
    assert remarks(edge) == []
    # It knows more than length, and what it knows beside length is more than chance.
    for found in (of_length(longer=0.69, left=0.5), of_length(longer=0.72, left=0.61)):
        assert remarks(replace(FLAWLESS, preference_model=found)) == []
    assert len(set(RULES)) == len(RULES)
