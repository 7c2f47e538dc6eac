"""`orchestrator study`: studies on Prolific and MTurk whose people are sent here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from db.session import session
from orchestrator.commands.printing import print_shown
from orchestrator.settings import Settings
from orchestrator.store.acts import machine_user, record_act


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="add a study and print the external URL to enter on the platform")
    end = actions.add_parser("end", help="let nobody else enter; who is in may finish")
    for action in (add, end):
        action.add_argument("platform", choices=("mturk", "prolific"))
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
            record_act(database, machine_user(), "add_study", f"study {args.platform}/{args.study}")
            base = settings.feedback_url or "<address of the feedback app>"
            shown: Any = {"study": args.study, "url": access.entry_url(base, args.platform)}
        elif args.action == "end":
            access.end_study(database, args.platform, args.study)
            record_act(database, machine_user(), "end_study", f"study {args.platform}/{args.study}")
            shown = {"study": args.study, "ended": True}
        else:
            shown = _listing(database)
    print_shown(
        shown, "No studies yet. Add one with `orchestrator study add PLATFORM STUDY --code CODE`.", as_json=args.json
    )
    return 0


def _listing(database: Session) -> list[Mapping[str, object]]:
    from orchestrator.people.access import study_figures

    return [
        {
            "platform": study.platform,
            "study": study.external_id,
            "num_comparisons": study.num_comparisons,
            "came": came,
            "finished": finished,
            "ended_at": study.ended_at,
        }
        for study, came, finished in reversed(study_figures(database))
    ]
