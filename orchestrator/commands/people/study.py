"""`orchestrator study`: studies on Prolific and MTurk whose people are sent here."""

from __future__ import annotations

import argparse
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import session
from orchestrator.commands.printing import print_shown
from orchestrator.settings import Settings

# What the platform puts in place of these is who comes, for which study, with which submission.
QUERIES = {
    "prolific": "PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}",
    "mturk": "workerId=${workerId}&assignmentId=${assignmentId}&hitId=${hitId}",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="add a study and print the external URL to enter on the platform")
    end = actions.add_parser("end", help="let nobody else enter; who is in may finish")
    for action in (add, end):
        action.add_argument("platform", choices=sorted(QUERIES))
        action.add_argument("study", help="the platform's id of the study (Prolific) or HIT (MTurk)")
    add.add_argument("--code", required=True, help="completion code that the platform pays for")
    add.add_argument("--comparisons", type=int, default=10, help="choices to make before the code is shown")
    listing = actions.add_parser("list", help="studies and how many came and finished")
    for action in (add, end, listing):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    from orchestrator.people import access

    settings = Settings.from_env()
    with session(settings.require_database_url()) as database:
        if args.action == "add":
            access.create_study(database, args.platform, args.study, args.code, args.comparisons)
            base = settings.feedback_url or "<address of the feedback app>"
            shown: Any = {"study": args.study, "url": f"{base}/enter/{args.platform}?{QUERIES[args.platform]}"}
        elif args.action == "end":
            access.end_study(database, args.platform, args.study)
            shown = {"study": args.study, "ended": True}
        else:
            shown = _listing(database)
    print_shown(
        shown, "No studies yet. Add one with `orchestrator study add PLATFORM STUDY --code CODE`.", as_json=args.json
    )
    return 0


def _listing(database: Session) -> list[dict[str, Any]]:
    came, finished = func.count(t.Visit.id), func.count(t.Visit.completed_at)
    rows = database.execute(
        select(
            t.Study.platform,
            t.Study.external_id.label("study"),
            t.Study.num_comparisons,
            came.label("came"),
            finished.label("finished"),
            t.Study.ended_at,
        )
        .outerjoin(t.Visit, t.Visit.study_id == t.Study.id)
        .group_by(t.Study.id)
        .order_by(t.Study.id)
    )
    return [dict(row._mapping) for row in rows]
