"""Rows of a report on preference models: what more comparisons would bring, and the matrix of questions."""

from __future__ import annotations

from models.preference.results import Accuracy
from orchestrator.judging.comparable_models import left_out_line
from orchestrator.judging.forecasts import MixMatrix, Scaling, says_nothing
from orchestrator.reports.wording import SIGNED, with_interval

NOT_MEASURED = "not measured"


def scaling_rows(found: Scaling | None) -> list[tuple[str, str]]:
    """The forecasts, for the report's table."""
    if found is None:
        return []
    forecasts = (
        ("Twice the comparisons", found.forecast.twice_the_comparisons, "c"),
        ("A PM 4 times as big", found.forecast.four_times_the_parameters, "b"),
    )
    rows = []
    for name, forecast, coefficient in forecasts:
        if forecast is None:
            rows.append((name, found.notes.get(coefficient, "not identifiable")))
            continue
        if says_nothing(forecast):
            rows.append((name, f"can't be said yet: any accuracy from 0 to 1 is possible, by {found.source}"))
            continue
        shown = f"{with_interval(forecast.gain.value, forecast.gain.ci, SIGNED)} accuracy"
        shown += f", to {with_interval(forecast.accuracy.value, forecast.accuracy.ci)}"
        poor = (found.scatter or 0) > 4
        rows.append((name, shown + f", by {found.source}" + ("; the fit is poor" if poor else "")))
    if found.left_out:
        rows.append(("… not used for this", left_out_line(found.left_out)))
    return rows


def matrix_rows(matrix: MixMatrix | None) -> list[tuple[str, str, str]]:
    """What a model was trained on, and its accuracy on helpful and on harmless comparisons; empty without any."""
    if matrix is None or not any(cell for row in matrix.rows.values() for cell in row.values()):
        return []
    return [(name, _cell(row["helpful"]), _cell(row["harmless"])) for name, row in matrix.rows.items()]


def matrix_lines(matrix: MixMatrix | None) -> list[str]:
    """The 2×2 matrix and the row of the mix as a Markdown table."""
    if matrix is None or not matrix_rows(matrix):
        return []
    lines = [
        "",
        "## Trained on one question, asked another",
        "",
        "| trained on | helpful | harmless |",
        "|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in matrix_rows(matrix)]
    if matrix.left_out:
        lines += ["", f"Not used for this: {left_out_line(matrix.left_out)}."]
    return lines


def _cell(found: Accuracy | None) -> str:
    if found is None or found.accuracy is None:
        return NOT_MEASURED
    return f"{with_interval(found.accuracy, found.ci)} (n = {found.n})"
