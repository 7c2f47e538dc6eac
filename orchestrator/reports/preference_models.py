"""Rows of a report on preference models: what more comparisons would bring, and the matrix of questions."""

from __future__ import annotations

from typing import Any

from orchestrator.judging.comparable_models import left_out_line
from orchestrator.judging.forecasts import says_nothing
from orchestrator.reports.wording import SIGNED, with_interval

NOT_MEASURED = "not measured"


def scaling_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The forecasts, for the report's table."""
    if found is None:
        return []
    names = {
        "twice_the_comparisons": ("Twice the comparisons", "c"),
        "four_times_the_parameters": ("A PM 4 times as big", "b"),
    }
    rows = []
    for key, (name, coefficient) in names.items():
        forecast = found["forecast"][key]
        if forecast is None:
            rows.append((name, found["notes"].get(coefficient, "not identifiable")))
            continue
        gain, accuracy = forecast["gain"], forecast["accuracy"]
        if says_nothing(forecast):
            rows.append((name, f"can't be said yet: any accuracy from 0 to 1 is possible, by {found['source']}"))
            continue
        shown = f"{with_interval(gain['value'], gain['ci'], SIGNED)} accuracy"
        shown += f", to {with_interval(accuracy['value'], accuracy['ci'])}"
        poor = (found["scatter"] or 0) > 4
        rows.append((name, shown + f", by {found['source']}" + ("; the fit is poor" if poor else "")))
    if found.get("left_out"):
        rows.append(("… not used for this", left_out_line(found["left_out"])))
    return rows


def matrix_lines(matrix: dict[str, Any] | None) -> list[str]:
    """The 2×2 matrix and the row of the mix as a Markdown table."""
    if matrix is None or not any(entry for row in matrix["rows"].values() for entry in row.values()):
        return []
    lines = [
        "",
        "## Trained on one question, asked another",
        "",
        "| trained on | helpful | harmless |",
        "|---|---|---|",
    ]
    for name, row in matrix["rows"].items():
        lines.append(f"| {name} | {_cell(row['helpful'])} | {_cell(row['harmless'])} |")
    if matrix["left_out"]:
        lines += ["", f"Not used for this: {left_out_line(matrix['left_out'])}."]
    return lines


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["accuracy"] is None:
        return NOT_MEASURED
    return f"{with_interval(entry['accuracy'], entry['ci'])} (n = {entry['n']})"
