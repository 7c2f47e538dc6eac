"""A cycle's outcome in a sentence or two of plain words, for whoever opens its report."""

from __future__ import annotations

from orchestrator.judging.elo import EloNumbers
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.store.verdicts import failed_said


def verdict(numbers: CycleNumbers) -> str:
    """What became of the cycle, and what people say of its snapshot."""
    if numbers.cycle == 0 and numbers.decision == "promote":
        return "The initial policy is live; people can begin."
    if numbers.decision is not None:
        return f"{_decided(numbers)} {_people(numbers.elo)}"
    if numbers.waits is not None:
        return f"The new policy waits for a person to decide: {numbers.waits}"
    stages = [stop.stage for stop in numbers.stops]
    if stages:
        return f"The cycle stopped at {stages[-1]}: nothing was decided, and what was live answers raters as before."
    return "Nothing is decided yet."


def _decided(numbers: CycleNumbers) -> str:
    if numbers.decision == "promote":
        return f"The new policy went live{_gain(numbers)}."
    kl_nats = numbers.evaluation.kl_nats if numbers.evaluation is not None else None
    why = failed_said([reason.to_json() for reason in numbers.reasons], kl_nats)
    return f"The new policy was not put live{f': {why}' if why else ''}. What was live answers raters as before."


def _gain(numbers: CycleNumbers) -> str:
    after, before = numbers.evaluation, numbers.initial_evaluation
    if after is None or before is None:
        return ""
    gain = after.pm_score - before.pm_score
    side = "above" if gain >= 0 else "below"
    return f": its replies score {abs(gain):.2f} {side} the initial policy's by this week's preference model"


def _people(elo: EloNumbers | None) -> str:
    if elo is None:
        return "People have not compared it yet."
    low, high = elo.ci
    if low > 0:
        return "People prefer it to the initial policy."
    if high < 0:
        return "People prefer the initial policy to it."
    return "People have not told it apart from the initial policy."
