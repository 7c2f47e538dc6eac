"""Do this week's comparisons say the opposite of what people said before? The last preference model is the witness.

Raters whose labels are turned round, by mistake or on purpose, teach the next preference model the opposite of what
people want; so may an honest week in which the policy has outgrown the model. Either is for a person to look at. Pure:
two sets of accuracies in, what contradicts out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.preference.results import Accuracy
from models.statistics.intervals import share_interval

CONFIDENCE = 0.98
"""Two-sided, so that the upper end is a one-sided 99 % bound: a coin lies below one half by bad luck once in 100."""
ALL = "all"
"""The part that holds the comparisons of every question."""


@dataclass(frozen=True)
class Part:
    """The last preference model's accuracy on one question: where it was held out, and on this week's comparisons."""

    held_out: float
    held_out_ci: tuple[float, float]
    fresh: float
    fresh_high: float
    """One-sided 99 % upper bound, which counts dialogues."""
    num_fresh: int

    @property
    def contradicts(self) -> bool:
        """Whether people now choose what the model would not, beyond chance."""
        return self.fresh_high < 0.5

    @property
    def fell(self) -> bool:
        """Whether the accuracy fell beyond chance, without being turned round."""
        return not self.contradicts and (self.fresh < 0.5 or self.fresh_high < self.held_out_ci[0])


def agreement(held_out: Mapping[str, Accuracy], fresh: Mapping[str, Accuracy]) -> dict[str, Part]:
    """What the last model says about this week's comparisons, by question and of all.

    A part is judged where the model was surely better than a coin on its own held-out comparisons (the 95 % interval
    lies above one half): where it knew nothing, nothing can contradict it. It is contradicted where the one-sided 99 %
    bound of its accuracy on the fresh ones lies below one half.

    Worked example: of 100 comparisons from 100 dialogues it orders 36 as people did. z = 2.326, centre
    (0.36 + 5.41/200) / 1.0541 = 0.367, half-width 2.326/1.0541 · sqrt(0.36·0.64/100 + 5.41/40000) = 0.109; the bound is
    0.476, and people contradict it. With 40 of 100 it is 0.405 + 0.111 = 0.516, which a coin may give.
    """
    parts = {}
    for question in sorted(held_out.keys() & fresh.keys(), key=lambda name: (name != ALL, name)):
        known, now = held_out[question], fresh[question]
        if known.accuracy is None or now.accuracy is None or known.ci[0] <= 0.5:
            continue
        high = share_interval(
            now.accuracy, now.n, design_effect=now.design_effect, num_clusters=now.dialogues, confidence=CONFIDENCE
        )[1]
        parts[question] = Part(known.accuracy, known.ci, now.accuracy, high, now.n)
    return parts
