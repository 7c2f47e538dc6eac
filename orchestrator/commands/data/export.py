"""`orchestrator export FILE`: comparisons out of the database into a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from db.session import session
from orchestrator.data.exporting import ExportRequest, export_file
from orchestrator.data.formats import EXPORTS
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    formats = "; ".join(f"{name}: {summary}" for name, (summary, _) in EXPORTS.items())
    parser.add_argument("file", type=Path, metavar="FILE", help="written as JSON Lines; gzip where it ends with .gz")
    parser.add_argument("--format", choices=EXPORTS, default="own", help=f"default %(default)s. {formats}")
    parser.add_argument("--source", help="only this source; `feedback` is our own page")
    parser.add_argument("--question", choices=["helpful", "harmless", "more_harmful"], help="only this question")
    parser.add_argument("--label-kind", choices=["human", "model"], help="only labels of this kind")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def run(args: argparse.Namespace) -> int:
    """Export in one transaction, so that the file shows one moment."""
    url = Settings.from_env().require_database_url()
    request = ExportRequest(args.format, args.source, args.question, args.label_kind)
    with session(url) as current:
        report = export_file(current, args.file, request)
    if args.json:
        print(json.dumps(report.to_json(), indent=2))
        return 0
    reasons = ", ".join(f"{reason} {count}" for reason, count in report.reasons.items())
    print(
        f"{report.file} ({report.format}): {report.read} read, {report.exported} exported, "
        f"{report.left_out} left out" + (f" ({reasons})" if reasons else "")
    )
    return 0
