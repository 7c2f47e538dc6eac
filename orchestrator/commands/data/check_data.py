"""`orchestrator check-data FILE...`: repeats within and between files, and texts of evaluations among comparisons."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.data.check import FileOfComparisons, FileOfTexts

from orchestrator.commands.printing import named_lines


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="comparisons in any format that can be imported, or texts"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="FILE",
        help="evaluation files whose texts should not be among the comparisons: comparisons, JSON(L), CSV, TSV, text",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Check each file by itself, every two against each other, and all against the evaluation files."""
    from models.runtime.results import part_to_json
    from orchestrator.data import check

    against = [check.read_texts(file) for file in args.against]
    checked = [check.check_file(file, against) for file in args.files]
    shared = check.shared_openings(args.files)
    if args.json:
        files = [part_to_json(report) for report in checked]
        print(json.dumps({"files": files, "shared": [part_to_json(two) for two in shared]}, indent=2))
        return 0
    for report in checked:
        print("\n".join(_lines(report)))
    for two in shared:
        print(f"{two.openings} opening messages stand in both {two.files[0]} and {two.files[1]}")
    return 0


def _lines(report: FileOfTexts | FileOfComparisons) -> list[str]:
    from orchestrator.data.check import FileOfTexts

    if isinstance(report, FileOfTexts):
        return [
            f"{report.file}: {report.texts} texts, {report.texts - report.distinct_texts} of them repeats "
            f"({report.texts - report.distinct_texts_verbatim} verbatim)"
        ]
    refused = ", ".join(
        f"{reason} {count} ({named_lines(report.refused_lines[reason], count)})"
        for reason, count in report.refused.items()
    )
    lines = [
        f"{report.file}: {report.comparisons} comparisons" + (f", refused: {refused}" if refused else ""),
        f"  {report.prompts} prompts, {report.repeated_prompts} of them in several comparisons",
        f"  {report.openings} opening messages, {report.repeated_openings} of them in several comparisons "
        f"({report.repeated_openings_verbatim} verbatim)",
        f"  {report.repeated_votes} times the same rater on the same replies again, "
        f"{report.contradicted} pairs of replies decided both ways",
    ]
    for found in report.against:
        lines.append(
            f"  {found.file}: {found.comparisons} comparisons with {found.prompts} prompts hold "
            f"{found.texts_met} of its {found.texts} texts ({found.whole_message} as a whole message)"
        )
    return lines
