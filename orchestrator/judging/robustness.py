"""The robustness experiment: how far a policy can be driven by one preference model before another disagrees.

Two PMs are trained on halves of the comparisons, PPO follows the first (the training PM), and both score it on the way.
Where the training PM's score rises and that of the other (the watcher) lags, PPO exploits the first one's errors. What
follows what is in `flows/robustness.py`; the stages are those of a cycle, taken for a configuration alone.

Source: arXiv:2204.05862 §4.2 (train PM and test PM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from models.statistics.intervals import mean_interval_json


def two_way(evaluations: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Policies by PMs: of each evaluation KL, and gains by the training PM and by the watcher over the first one.

    Records carry `prompt_id`, `score` by the training PM, `watcher_score` by the watcher, and `kl_nats`. Gains are
    paired by prompt, which takes away what the two PMs' scores start from; the gap is the first gain minus the second,
    in PM units (a unit is a win rate of 73 % as that PM has it). Intervals are 95 %, over prompts.
    """
    start = {record["prompt_id"]: record for record in evaluations[0]}
    rows = []
    for records in evaluations:
        pairs = [(record, start[record["prompt_id"]]) for record in records]
        training = [now["score"] - then["score"] for now, then in pairs]
        test = [now["watcher_score"] - then["watcher_score"] for now, then in pairs]
        gaps = [one - other for one, other in zip(training, test, strict=True)]
        rows.append(
            {
                "kl_nats": math.fsum(record["kl_nats"] for record in records) / len(records),
                "n": len(records),
                "training_gain": _interval(training),
                "watcher_gain": _interval(test),
                "gap": _interval(gaps),
            }
        )
    return rows


def past_best(evaluations: Sequence[Sequence[dict[str, Any]]]) -> tuple[int, dict[str, Any] | None]:
    """The place of the policy that the watcher likes best, and the result's score less its; None for the result itself.

    The difference is by the watcher alone, so that the two PMs' scales play no part, and paired by prompt. It is a
    little too large: the best of several is partly the luckiest.
    """
    means = [math.fsum(record["watcher_score"] for record in records) / len(records) for records in evaluations]
    best = means.index(max(means))
    if best == len(means) - 1:
        return best, None
    then = {record["prompt_id"]: record["watcher_score"] for record in evaluations[best]}
    return best, _interval([record["watcher_score"] - then[record["prompt_id"]] for record in evaluations[-1]])


def gap_opens(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first policy from which on every gap's interval lies above 0; None where the last one's does not."""
    first = None
    for row in reversed(rows):
        low = row["gap"]["ci"][0]
        if low is None or low <= 0:
            break
        first = row
    return None if first is None else {key: first[key] for key in ("policy", "samples", "kl_nats", "gap")}


def _interval(values: Sequence[float]) -> dict[str, Any]:
    mean, ci = mean_interval_json(values)
    return {"mean": mean, "ci": ci}
