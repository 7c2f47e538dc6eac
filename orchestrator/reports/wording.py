"""How a report words a number: alone, as a share, with its interval. Used by every module of reports that has rows."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "–"
"""What stands for a number that was not measured."""
UNKNOWN_BOUND = "?"
"""What stands for the end of an interval about which nothing is known: that of a single value, say."""

SIGNED = "+.3f"
SHARE = ".1%"


def number(value: float | None, form: str = ".3f", missing: str = MISSING) -> str:
    """A number by a format specification; a dash, or what is given for it, where it was not measured.

    number(0.5) is "0.500", number(None) is "–".
    """
    return missing if value is None else format(value, form)


def share(value: float | None) -> str:
    """A share in per cent: share(0.125) is "12.5%"."""
    return number(value, SHARE)


def interval(ci: Sequence[float | None], form: str = ".3f") -> str:
    """Both ends of an interval: interval((0.25, None)) is "[0.250, ?]"."""
    low, high = (UNKNOWN_BOUND if bound is None else format(bound, form) for bound in ci)
    return f"[{low}, {high}]"


def with_interval(value: float | None, ci: Sequence[float | None] | None, form: str = ".3f") -> str:
    """A number and its interval by one format; a dash where either was not measured.

    with_interval(0.5, (0.25, 0.75), ".2f") is "0.50 [0.25, 0.75]".
    """
    if value is None or ci is None:
        return MISSING
    return f"{format(value, form)} {interval(ci, form)}"
