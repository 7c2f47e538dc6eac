"""Read what the evaluate job wrote, and plain intervals over it. No torch: the gates and reports use it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# 97.5 % quantile of the standard normal distribution: 95 % intervals.
Z = 1.959964


def replies(directory: Path) -> Iterator[dict[str, Any]]:
    """The records of an evaluation: prompt_id, kind, messages, reply, score, kl_nats, reply_tokens, truncated."""
    with (directory / "replies.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean and its normal 95 % interval; of a single value the interval is the whole line.

    mean_interval([1, 3]) is 2 ± 1.96·(√2/√2): (2, (0.04, 3.96)).

    Raises:
        ValueError: no values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("mean_interval needs at least one value")
    mean = math.fsum(values) / count
    if count == 1:
        return mean, (-math.inf, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = Z * math.sqrt(variance / count)
    return mean, (mean - half, mean + half)
