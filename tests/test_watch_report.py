"""What a cycle's report says about a run that was watched."""

from orchestrator.report import _rows
from orchestrator.watch_report import collapse_rows, watch_rows

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
