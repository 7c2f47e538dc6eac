"""What to do about a comparison set that leaves training, or the held-out part, without a comparison. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

UNDECIDED = "none_"
"""Begins the reasons for which comparisons without a choice are left out of a set."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """How many comparisons with a choice each part has, and what else there was."""

    train: int
    held_out: int
    ties: int
    """In the set, without a choice."""
    left_out: Mapping[str, int]
    """Of the set, by reason."""
    one_dialogue: bool
    """Whether all comparisons begin with the same message."""


def advice(found: Contents) -> str:
    """What fits a set of these contents, of which a part is empty."""
    ties = found.ties + sum(count for reason, count in found.left_out.items() if reason.startswith(UNDECIDED))
    if not found.train and not found.held_out:
        return _nothing(ties, {reason: n for reason, n in found.left_out.items() if not reason.startswith(UNDECIDED)})
    if found.one_dialogue:
        return (
            "All comparisons begin with one and the same message, and a dialogue is never split: collect comparisons "
            "of other dialogues."
        )
    if found.held_out:
        return (
            "Everything is held out: lower comparisons.held_out_fraction, or import the files to train on without "
            "--split held_out."
        )
    return (
        "Nothing is held out: raise comparisons.held_out_fraction, collect more dialogues, or import a test file with "
        "--split held_out."
    )


def _nothing(ties: int, others: Mapping[str, int]) -> str:
    if ties:
        return (
            f"In {ties} comparisons nobody chose a side: ask for a choice, or let them teach (comparisons.ties, "
            'preference_model.targets = "soft") beside comparisons that have one.'
        )
    if others:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(others.items()))
        return f"All comparisons are left out ({reasons}): change what [comparisons] takes, or collect others."
    return "Collect comparisons, or import some."
