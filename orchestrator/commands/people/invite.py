"""`orchestrator invite`: links by which people become raters."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import session
from orchestrator.commands.printing import print_shown
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make an invitation and print its link, once")
    add.add_argument("label", help="whom it is for, in your words")
    add.add_argument("--platform", help="where these raters come from")
    add.add_argument("--max-uses", type=int, help="how many raters may join by it (default: any number)")
    add.add_argument("--days", type=float, help="days until it expires (default: never)")
    end = actions.add_parser("end", help="let nobody else join by it; who joined stays")
    end.add_argument("id", type=int)
    listing = actions.add_parser("list", help="invitations and how many joined by each")
    for action in (add, end, listing):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    from orchestrator.people import access

    settings = Settings.from_env()
    with session(settings.require_database_url()) as database:
        if args.action == "add":
            invitation, token = access.create_invitation(
                database,
                args.label,
                platform=args.platform,
                max_uses=args.max_uses,
                valid_for=timedelta(days=args.days) if args.days is not None else None,
            )
            base = settings.feedback_url or "<address of the feedback app>"
            shown: Any = {"id": invitation.id, "link": f"{base}/join/{token}"}
        elif args.action == "end":
            access.end_invitation(database, args.id)
            shown = {"id": args.id, "ended": True}
        else:
            shown = _listing(database)
    print_shown(shown, "No invitations yet. Make one with `orchestrator invite add LABEL`.", as_json=args.json)
    if args.action == "add" and not args.json:
        print("The link is not stored and can't be shown again.")
    return 0


def _listing(database: Session) -> list[Mapping[str, object]]:
    joined = func.count(t.InvitationUse.rater_id).label("joined")
    rows = database.execute(
        select(
            t.Invitation.id,
            t.Invitation.label,
            t.Invitation.platform,
            joined,
            t.Invitation.max_uses,
            t.Invitation.expires_at,
            t.Invitation.ended_at,
        )
        .outerjoin(t.InvitationUse, t.InvitationUse.invitation_id == t.Invitation.id)
        .group_by(t.Invitation.id)
        .order_by(t.Invitation.id)
    )
    return [dict(row._mapping) for row in rows]
