"""What commands print for people: rows as aligned columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any


def print_table(rows: Sequence[Mapping[str, Any]], nothing: str) -> None:
    """Print rows that share their keys as columns under the keys' names; `nothing` where there are none."""
    if not rows:
        print(nothing)
        return
    columns = list(rows[0])
    lines = [columns, *([in_short(row[key]) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def in_short(value: Any) -> str:
    """A value as people read it: numbers to three digits, times to the second, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return str(value)


def print_shown(shown: Sequence[Mapping[str, Any]] | Mapping[str, Any], nothing: str, *, as_json: bool) -> None:
    """Print what a command did: one thing as `key: value` lines, several as a table, either as JSON where asked for."""
    if as_json:
        print(json.dumps(shown, indent=2, default=str))
    elif isinstance(shown, Mapping):
        print("\n".join(f"{key}: {value}" for key, value in shown.items()))
    else:
        print_table(shown, nothing)


def named_lines(lines: Sequence[int], count: int) -> str:
    """Lines of a file in words; `lines` may be the first of `count`."""
    numbers = ", ".join(map(str, lines)) + (" …" if count > len(lines) else "")
    return f"line {numbers}" if count == 1 else f"lines {numbers}"
