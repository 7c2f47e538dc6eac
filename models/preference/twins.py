"""Twin preference models: which comparisons each of the two trains on, and what training on a part costs.

The production model is the one that PPO follows; the watcher has never seen its comparisons, so a policy that
exploits the first model's errors does not please the second. Read next: `models/jobs/train_preference_model.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.preference.loss import ordered_rightly
from models.preference.results import CostOfAPart
from models.preference.settings import Part, Twin
from models.statistics.intervals import mean_interval

# Share of the training part's dialogues that goes to the watcher: the paper's 50/50 for its robustness experiment, and
# the other side of its 65/35 split [35, 70].
WATCHER_SHARE = {"halves": 0.50, "holdout": 0.35}

# Accuracy per ln(comparisons) of the paper's fit [44], for where the two parts are equal and give no slope.
PAPER_SLOPE = 0.015

_HASH_DIGITS = 8


def part_of(split_key: str, twin: Twin) -> Part:
    """Which of the two models trains on the dialogues with this split key.

    By a second hash of the key, independent of the first, which says what is held out, and stable over weeks. The
    watcher of `holdout` trains on a part of what the watcher of `halves` does.
    """
    if twin == "off":
        return "production"
    digest = hashlib.sha256(f"twin/{split_key}".encode()).hexdigest()
    threshold = int(WATCHER_SHARE[twin] * 16**_HASH_DIGITS)
    return "watcher" if int(digest[:_HASH_DIGITS], 16) < threshold else "production"


def cost_of_a_part(
    production: Mapping[str, float],
    watcher: Mapping[str, float],
    num_production: int,
    num_watcher: int,
    dialogues: Mapping[str, int | None] | None = None,
) -> CostOfAPart:
    """Accuracy that the production model loses by not training on the watcher's comparisons, as a share.

    `production` and `watcher` are the gaps score(better) − score(worse) of the same held-out comparisons by id.
    Accuracy grows with ln(comparisons) [44]; the slope taken is that between the two parts,
    c = (accuracy_production − accuracy_watcher) / ln(n_production / n_watcher), and the cost c · ln(n / n_production)
    with n comparisons in all. Its interval is that of the paired difference of the two accuracies, robust to dependence
    within `dialogues` where those are given by comparison. Parts within 10 % of each other give no slope; then the
    paper's is taken, and there is no interval.

    Raises:
        ValueError: the models scored no comparison in common.
    """
    shared = sorted(production.keys() & watcher.keys())
    if not shared:
        raise ValueError("The two preference models have no held-out comparison in common.")
    ours, theirs = (ordered_rightly(gaps[id] for id in shared) for gaps in (production, watcher))
    named = None if dialogues is None else [dialogues.get(id) for id in shared]
    gain = math.log((num_production + num_watcher) / num_production)
    between = math.log(num_production / num_watcher)
    if abs(between) < math.log(1.1):
        slope, ci, method = PAPER_SLOPE, None, "slope of the paper's fit"
    else:
        mean, low, high = mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], clusters=named)
        slope, method = mean / between, "slope between the two parts"
        ci = (low / between * gain, high / between * gain) if math.isfinite(low) else None
    return CostOfAPart(
        n=len(shared),
        production_accuracy=math.fsum(ours) / len(shared),
        watcher_accuracy=math.fsum(theirs) / len(shared),
        slope_per_ln_comparisons=slope,
        cost=slope * gain,
        cost_ci=ci,
        method=method,
    )


def gaps_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """score(better) − score(worse) by comparison id, from the lines of a model's held_out_scores.jsonl."""
    return {line["id"]: line["better_score"] - line["worse_score"] for line in lines}
