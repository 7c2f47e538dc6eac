"""`orchestrator import FILE...`: comparisons from files into the database."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from db.session import session
from orchestrator.commands.printing import named_lines
from orchestrator.commands.progress import Progress
from orchestrator.data.formats import FORMATS
from orchestrator.data.formats.reading import check_openable
from orchestrator.data.importing import ImportReport, ImportRequest, import_file
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `import`."""
    formats = "; ".join(f"{name}: {known.summary}" for name, known in FORMATS.items())
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSONL or JSON, plain or gzip")
    parser.add_argument("--format", choices=FORMATS, help=f"found out where not given. {formats}")
    parser.add_argument("--source", help="name of the set; default the name of the file's folder")
    parser.add_argument(
        "--question",
        choices=["helpful", "harmless"],
        help="what the raters were asked; needed for hh-rlhf unless the folder's name says it, else helpful",
    )
    parser.add_argument("--label-kind", choices=["human", "model"], help="who chose, where the format does not say")
    parser.add_argument(
        "--tranche", choices=["base", "rs", "online", "imported"], default="imported", help="default %(default)s"
    )
    parser.add_argument("--split", choices=["held_out"], help="hold every dialogue of these files out of training")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="MT-bench questions, where not beside FILE")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="MT-bench answers, where not beside FILE")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def run(args: argparse.Namespace) -> int:
    """Import each file in a transaction of its own; the files before a failing one stay imported.

    The status is 1 where a file gave nothing: no record, or none that could be used.
    """
    check_openable(args.files)
    url = Settings.from_env().require_database_url()
    request = ImportRequest(
        format=args.format,
        source=args.source,
        question=args.question,
        label_kind=args.label_kind,
        tranche=args.tranche,
        split=args.split,
        questions=args.questions,
        answers=args.answers,
    )
    reports = []
    for file in args.files:
        with session(url) as current:
            report = import_file(current, file, request, Progress(str(file)))
        reports.append(report)
        if not args.json:
            print(_line(report), flush=True)
    if args.json:
        totals = {
            key: sum(getattr(report, key) for report in reports)
            for key in ("read", "imported", "already_there", "quarantined")
        }
        print(json.dumps({**totals, "files": [report.to_json() for report in reports]}, indent=2))
    return int(any(_gave_nothing(report) for report in reports))


def _gave_nothing(report: ImportReport) -> bool:
    return report.imported + report.already_there == 0


def _line(report: ImportReport) -> str:
    if report.records == 0:
        return (
            f"{report.file}: 0 records found; expected JSON Lines or one JSON array of comparisons "
            "(docs/reference/formats.md)"
        )
    reasons = ", ".join(
        f"{reason} {count} ({named_lines(report.lines[reason], count)})" for reason, count in report.reasons.items()
    )
    return (
        f"{report.file} ({report.format}, source {report.source}): {report.read} read, {report.imported} imported, "
        f"{report.already_there} already there, {report.quarantined} quarantined"
        + (f": {reasons}; `orchestrator quarantine` shows them" if reasons else "")
        + (". Nothing of this file can be used" if _gave_nothing(report) else "")
    )
