"""A preference model's mean score over a fixed set of dialogues, which is taken off where models are shown together.

Source: arXiv:2204.05862, B.2.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.preference.comparison_set import ComparisonSetError, stream_lines, token_pair

if TYPE_CHECKING:
    from models.preference.model import PreferenceModel

FILE = "reference.jsonl"


def measure_offset(model: PreferenceModel, directory: Path, max_tokens: int) -> dict[str, Any]:
    """Mean score over both sides of the reference pairs, with the SHA-256 of the set.

    Pairs of more than `max_tokens` tokens are left out and counted.

    Raises:
        ComparisonSetError: no such file, a line of another shape, or no pair that fits.
    """
    path = directory / FILE
    if not path.is_file():
        raise ComparisonSetError(f"{directory} has no {FILE}; expected a reference set.")
    pairs = [token_pair(record, model.chat) for record in stream_lines(path)]
    fitting = [pair for pair in pairs if max(pair.better_tokens, pair.worse_tokens) <= max_tokens]
    if not fitting:
        raise ComparisonSetError(f"None of the {len(pairs)} pairs of {path} has at most {max_tokens} tokens a side.")
    better, worse = model.score_pairs(fitting)
    return {
        "offset": math.fsum([*better, *worse]) / (2 * len(fitting)),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "num_pairs": len(fitting),
        "too_long": len(pairs) - len(fitting),
    }


def stored_offset(directory: Path) -> float | None:
    """The offset that a preference model was published with; None where it had no reference set."""
    path = directory / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    # Before there were reference sets, `offset` was a mean over a set that changed every week.
    return float(results["offset"]) if results.get("reference") else None
