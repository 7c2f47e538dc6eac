"""What a preference model's scores say about the held-out comparisons: accuracies with intervals, by group.

Read next: `models/length_regression.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from models.intervals import wilson
from models.length_regression import count_longer_wins, length_log_odds, regress_out_length
from models.preference_loss import count_correct

if TYPE_CHECKING:
    from models.comparison_data import TokenPair
    from models.preference import PreferenceModel


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A held-out comparison with the preference model's two scores, in nats."""

    id: str
    source: str
    question: str
    better_score: float
    worse_score: float
    length_difference: int  # tokens(better) − tokens(worse)
    rater: str | None = None

    @property
    def gap(self) -> float:
        """score(better) − score(worse)."""
        return self.better_score - self.worse_score

    def as_json(self) -> dict[str, Any]:
        """The fields by name, for one line of a JSONL file."""
        return asdict(self)


def score_pairs(model: PreferenceModel, pairs: Sequence[TokenPair]) -> list[ScoredPair]:
    """Both scores of every pair, in the order given."""
    better, worse = model.score_pairs(pairs)
    return [
        ScoredPair(pair.id, pair.source, pair.question, better[i], worse[i], pair.length_difference, pair.rater)
        for i, pair in enumerate(pairs)
    ]


def accuracy_entry(num_correct: float, n: int) -> dict[str, Any]:
    """A share with its Wilson 95% interval and its count; accuracy is None where nothing was counted."""
    low, high = wilson(num_correct, n)
    return {"accuracy": num_correct / n if n else None, "ci": [low, high], "n": n}


def held_out_report(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Accuracy of the preference model, of "the longer reply wins", and of the scores without length.

    Each has an overall figure and one per source; the model's own also one per
    question and per rater. Where length is regressed out, each source has its own slope, since
    raters may like length for one question and dislike it for another; the
    overall figure fits one slope to all pairs.
    """
    gaps = [pair.gap for pair in pairs]
    mean_loss = math.fsum(_softplus(-gap) for gap in gaps) / len(gaps) if gaps else None
    return {
        **_model_accuracy(pairs),
        "loss": mean_loss,
        "by_source": _grouped(pairs, lambda pair: pair.source, _model_accuracy),
        "by_question": _grouped(pairs, lambda pair: pair.question, _model_accuracy),
        "by_rater": _grouped([p for p in pairs if p.rater is not None], lambda p: p.rater or "", _model_accuracy),
        "longer_wins": {
            **_longer_wins(pairs),
            "by_source": _grouped(pairs, lambda pair: pair.source, _longer_wins),
        },
        "length_regressed": {
            **_length_regressed(pairs),
            "by_source": _grouped(pairs, lambda pair: pair.source, _length_regressed),
        },
    }


def _model_accuracy(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    return accuracy_entry(count_correct(pair.gap for pair in pairs), len(pairs))


def _longer_wins(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    differences = [pair.length_difference for pair in pairs]
    entry = accuracy_entry(count_longer_wins(differences), len(pairs))
    return entry | {"log_odds_per_token": length_log_odds(differences)}


def _length_regressed(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    if not pairs:
        return accuracy_entry(0, 0) | {"score_per_token": None}
    regression = regress_out_length([pair.gap for pair in pairs], [pair.length_difference for pair in pairs])
    entry = accuracy_entry(regression.num_correct, len(pairs))
    return entry | {"score_per_token": regression.score_per_token}


def _grouped(
    pairs: Sequence[ScoredPair],
    key: Callable[[ScoredPair], str],
    entry: Callable[[Sequence[ScoredPair]], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return {name: entry(groups[name]) for name in sorted(groups)}


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
