"""What a cycle's report says about a run that was watched."""

from orchestrator.reports.cycle_text import _rows, to_markdown
from orchestrator.reports.watching import collapse_remarks, collapse_rows, watch_rows

COLLAPSE = {
    "distinct_1": 0.2,
    "distinct_2": 0.5,
    "duplicates": 0.25,
    "stock_reply": 0.2,
    "stock_reply_text": "I can't\n| help",
    "stock_opening": 0.3,
    "stock_opening_text": None,
    "repeated_ngrams": 0.0,
    "refusals": 0.125,
}


def test_alarms_that_passed_are_named_and_the_one_that_stopped_the_run_is_not():
    training = {
        "stopped": "entropy 0.1 nats per token … (iteration 7)",
        "watch": {
            "stopped_by": "entropy",
            "alarms": [{"wire": "length", "iteration": 3}, {"wire": "entropy", "iteration": 7}],
            "start": {"score": 0.5, "score_watcher": 0.25},
            "end": {"score": 2.0, "score_watcher": 0.75, "twin_gap": 1.0},
        },
        "logp_accuracy": {
            "pairs": {"helpful": 64},
            "preference_model": {"helpful": 0.75},
            "curve": [{"samples": 0, "helpful": 0.5}, {"samples": 640, "helpful": 0.625}],
        },
    }
    names = ("distillation", "comparison_set", "preference_model", "orientation", "evaluation", "best_of_n", "elo")
    assert _rows(dict.fromkeys(names) | {"training": training})[:1] == [("Alarms that passed", "length")]
    assert watch_rows(training) == [
        ("Alarms that passed", "length"),
        ("Twin gap", "+1.000: training PM 0.500 → 2.000, watcher 0.250 → 0.750"),
        ("Mean log-p accuracy, helpful", "0.500 → 0.625 (the PM on the same 64 pairs: 0.750)"),
    ]
    accuracy = training["logp_accuracy"]
    accuracy["preference_model_ci"] = {"helpful": [0.625, 0.875]}
    accuracy["curve"][1]["ci"] = {"helpful": [0.5, 0.75]}
    assert watch_rows(training)[2][1] == (
        "0.500 → 0.625 [0.500, 0.750] (the PM on the same 64 pairs: 0.750 [0.625, 0.875])"
    )
    # Less 0.5 and 0.25: both begin at what their reference replies have.
    assert watch_rows(training, (0.5, 0.25))[1] == (
        "Twin gap",
        "+1.000: training PM 0.000 → 1.500, watcher 0.000 → 0.500, above the reference set",
    )


def test_a_quiet_run_and_one_from_before_the_watch_have_no_rows():
    quiet = {"stopped": None, "watch": {"stopped_by": None, "alarms": [], "start": {}, "end": {"entropy": 1.0}}}
    assert watch_rows(quiet) == []
    assert watch_rows({"stopped": None}) == []


def test_collapse_stands_beside_the_initial_policys_and_quotes_safely():
    kinds = {"helpful": {"collapse": COLLAPSE}}
    found = {"entropy": 1.5, "collapse": COLLAPSE, "by_kind": kinds}
    initial = {"entropy": 2.0, "collapse": COLLAPSE | {"duplicates": 0.0}, "by_kind": {}}
    assert collapse_rows(found, initial) == [
        ("Entropy", "1.500 nats per token (initial policy: 2.000)"),
        ("Distinct word pairs", "50.0% (initial policy: 50.0%)"),
        ("Replies that equal another", "25.0% (initial policy: 0.0%)"),
        ("Most frequent reply", "20.0% “I can't \\| help” (initial policy: 20.0%)"),
        ("Most frequent opening", "30.0% (initial policy: 30.0%)"),
        ("Refusals of ordinary requests", "12.5% (initial policy: –)"),
    ]
    assert collapse_rows({"entropy": 1.5, "by_kind": {}}, initial) == []
    assert collapse_rows(found | {"watcher_score": 0.5}, initial)[0] == ("Watcher's score", "0.500 (initial policy: –)")


def test_signs_of_collapse_that_rose_beyond_chance_are_remarked():
    initial = {"num_prompts": 40, "truncated": 0.5, "collapse": COLLAPSE | {"duplicates": 0.125}, "by_kind": {}}
    found = initial | {"collapse": COLLAPSE | {"duplicates": 0.35, "stock_opening": 0.4}, "truncated": 0.0}
    # Wilson: 0.125 of 40 reaches up to 0.261, 0.35 of 40 down to 0.221. 0.225 - hypot(0.129, 0.136) = 0.037 is above 0;
    # 0.4 against 0.3 is not, and what fell is no sign.
    remark = "replies that equal another rose from 12.5% to 35.0%, more than chance: read some replies"
    assert collapse_remarks(found, initial) == [remark]
    few = {"num_prompts": 16}
    assert collapse_remarks(found | few, initial | few) == []
    assert collapse_remarks({}, {}) == collapse_remarks(found, {}) == []
    kinds = [{"helpful": {"num_prompts": 40, "collapse": COLLAPSE | {"refusals": share}}} for share in (0.0, 0.5)]
    assert collapse_remarks({"by_kind": kinds[1]}, {"by_kind": kinds[0]}) == [
        "refusals of ordinary requests rose from 0.0% to 50.0%, more than chance: read some replies"
    ]
    names = ("comparison_set", "preference_model", "orientation", "best_of_n", "elo", "decision", "snapshot")
    scores = {"pm_score": 1.0, "pm_score_ci": [0.5, 1.5], "kl_nats": 1.0, "reply_tokens": 9.0, "entropy": 1.0}
    report = {"cycle": 1, "name": "x", "reasons": [{"passed": True, "reason": "KL 1 is within"}]}
    report |= dict.fromkeys(names) | {"evaluation": found | scores, "initial_evaluation": initial | scores}
    assert f"- passed: KL 1 is within\n- remark: {remark}\n" in to_markdown(report)
