"""What a cycle's report says about a run that was watched."""

from dataclasses import replace

from models.policy.results import (
    EvaluationPart,
    LastSignals,
    LogpAccuracy,
    LogpPoint,
    RaisedAlarm,
    Recovery,
    RolloutSignals,
    WatchResult,
)
from models.statistics.reply_signals import CollapseSignals
from orchestrator.judging.gates import Verdict
from orchestrator.reports.cycle_text import PPO, sections, to_markdown
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.watching import collapse_remarks, collapse_rows, watch_rows
from tests.orchestrator.reports.policy_results import BARE_PPO, evaluation

COLLAPSE = CollapseSignals(
    distinct_1=0.2,
    distinct_2=0.5,
    duplicates=0.25,
    stock_reply=0.2,
    stock_reply_text="I can't\n| help",
    stock_opening=0.3,
    stock_opening_text=None,
    repeated_ngrams=0.0,
    refusals=0.125,
)
START = RolloutSignals(
    kl_nats=0.0,
    kl_error=0.1,
    replies=64,
    entropy=2.0,
    reply_tokens=9.0,
    truncated=0.0,
    repeated_ngrams=0.0,
    duplicates=0.0,
    stock_reply=0.0,
    score=0.5,
    score_watcher=0.25,
)
END = LastSignals(**(vars(START) | {"score": 2.0, "score_watcher": 0.75, "twin_gap": 1.0}))
EMPTY = CycleNumbers(cycle=1, name="x")


def part(num_prompts: int | None, refusals: float) -> EvaluationPart:
    return EvaluationPart(1.0, (0.5, 1.5), 1.0, num_prompts=num_prompts, collapse=replace(COLLAPSE, refusals=refusals))


def test_alarms_that_passed_are_named_and_the_one_that_stopped_the_run_is_not():
    accuracy = LogpAccuracy(
        pairs={"helpful": 64},
        preference_model={"helpful": 0.75},
        curve=(LogpPoint(samples=0, helpful=0.5), LogpPoint(samples=640, helpful=0.625)),
    )
    training = replace(
        BARE_PPO,
        stopped="entropy 0.1 nats per token … (iteration 7)",
        watch=WatchResult("entropy", (RaisedAlarm(3, "length", ""), RaisedAlarm(7, "entropy", "")), START, END),
        logp_accuracy=accuracy,
    )
    rows = dict(sections(replace(EMPTY, training=training)))[PPO]
    assert rows[:1] == [("Alarms that passed", "length")]
    assert watch_rows(training) == [
        ("Alarms that passed", "length"),
        ("Twin gap", "+1.000: training PM 0.500 → 2.000, watcher 0.250 → 0.750"),
        ("Mean log-p accuracy, helpful", "0.500 → 0.625 (the PM on the same 64 pairs: 0.750)"),
    ]
    first, last = accuracy.curve
    accuracy = replace(
        accuracy,
        preference_model_ci={"helpful": (0.625, 0.875)},
        curve=(first, replace(last, ci={"helpful": (0.5, 0.75)})),
    )
    assert watch_rows(replace(training, logp_accuracy=accuracy))[2][1] == (
        "0.500 → 0.625 [0.500, 0.750] (the PM on the same 64 pairs: 0.750 [0.625, 0.875])"
    )
    # Less 0.5 and 0.25: both begin at what their reference replies have.
    assert watch_rows(training, (0.5, 0.25))[1] == (
        "Twin gap",
        "+1.000: training PM 0.000 → 1.500, watcher 0.000 → 0.500, above the reference set",
    )


def test_a_quiet_run_and_one_from_before_the_watch_have_no_rows():
    quiet = WatchResult(None, (), START, replace(END, score_watcher=None, twin_gap=None))
    assert watch_rows(replace(BARE_PPO, watch=quiet)) == []
    assert watch_rows(BARE_PPO) == []


def test_recoveries_are_told_in_one_row():
    alarms = tuple(RaisedAlarm(at, wire, "") for at, wire in ((3, "ratio"), (4, "length"), (5, "clip_fraction")))
    back = (Recovery(3, "ratio", "far", 0, 5e-5), Recovery(5, "clip_fraction", "many", 4, 2.5e-5))
    training = replace(BARE_PPO, watch=WatchResult(None, alarms), recoveries=back)
    assert watch_rows(training) == [
        (
            "PPO went back",
            "after iteration 3 (`ratio`) back to the start, on at a learning rate of 5e-05; after iteration 5 "
            "(`clip_fraction`) back to the weights of iteration 4, on at a learning rate of 2.5e-05",
        ),
        ("Alarms that passed", "length"),
    ]


def test_collapse_stands_beside_the_initial_policys_and_quotes_safely():
    found = evaluation(entropy=1.5, collapse=COLLAPSE, by_kind={"helpful": part(None, 0.125)})
    initial = evaluation(entropy=2.0, collapse=replace(COLLAPSE, duplicates=0.0))
    assert collapse_rows(found, initial) == [
        ("Entropy", "1.500 nats per token (initial policy: 2.000)"),
        ("Distinct word pairs", "50.0% (initial policy: 50.0%)"),
        ("Replies that equal another", "25.0% (initial policy: 0.0%)"),
        ("Most frequent reply", "20.0% “I can't \\| help” (initial policy: 20.0%)"),
        ("Most frequent opening", "30.0% (initial policy: 30.0%)"),
        ("Refusals of ordinary requests", "12.5% (initial policy: –)"),
    ]
    assert collapse_rows(evaluation(entropy=1.5), initial) == []
    watched = replace(found, watcher_score=0.5)
    assert collapse_rows(watched, initial)[0] == ("Watcher's score", "0.500 (initial policy: –)")
    assert collapse_rows(watched, None)[1] == ("Entropy", "1.500 nats per token (initial policy: –)")


def test_signs_of_collapse_that_rose_beyond_chance_are_remarked():
    initial = evaluation(num_prompts=40, truncated=0.5, collapse=replace(COLLAPSE, duplicates=0.125), entropy=1.0)
    risen = replace(COLLAPSE, duplicates=0.35, stock_opening=0.4)
    found = replace(initial, collapse=risen, truncated=0.0)
    # Wilson: 0.125 of 40 reaches up to 0.261, 0.35 of 40 down to 0.221. 0.225 - hypot(0.129, 0.136) = 0.037 is above 0;
    # 0.4 against 0.3 is not, and what fell is no sign.
    remark = "replies that equal another rose from 12.5% to 35.0%, more than chance: read some replies"
    assert collapse_remarks(found, initial) == [remark]
    assert collapse_remarks(replace(found, num_prompts=16), replace(initial, num_prompts=16)) == []
    assert collapse_remarks(evaluation(), evaluation()) == collapse_remarks(found, evaluation()) == []
    kinds = [evaluation(by_kind={"helpful": part(40, share)}) for share in (0.0, 0.5)]
    assert collapse_remarks(kinds[1], kinds[0]) == [
        "refusals of ordinary requests rose from 0.0% to 50.0%, more than chance: read some replies"
    ]
    report = replace(
        EMPTY, reasons=(Verdict("kl", True, "KL 1 is within"),), evaluation=found, initial_evaluation=initial
    )
    assert f"- passed: KL 1 is within\n- remark: {remark}\n" in to_markdown(report)
