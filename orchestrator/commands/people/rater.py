"""`orchestrator rater`: add raters, list them, renew a token, change a status, withdraw one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine, session, transaction
from orchestrator.commands.printing import in_short, print_table
from orchestrator.people import raters, withdrawal
from orchestrator.settings import Settings
from orchestrator.store.acts import machine_user, record_act

_DIALOGUES = 50
"""How many of a rater's dialogues are listed, the newest."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="add a rater and print the token, once")
    add.add_argument("handle", help="unique name")
    add.add_argument("--kind", choices=raters.KINDS, default="human")
    add.add_argument("--platform", help="where the rater comes from, e.g. prolific")
    token = actions.add_parser("token", help="give a rater a new token; the old one ends")
    token.add_argument("handle")
    status = actions.add_parser("status", help="select, normal or banned")
    status.add_argument("handle")
    status.add_argument("status", choices=raters.STATUSES)
    withdraw = actions.add_parser(
        "withdraw", help="take a rater out of every future comparison set, for good, and list what was made already"
    )
    withdraw.add_argument("handle")
    withdraw.add_argument("--note", default="", help="who asked for it and how")
    erase = actions.add_parser(
        "erase", help="withdraw a rater and blank what they wrote and who they are, everywhere; can't be undone"
    )
    erase.add_argument("handle")
    erase.add_argument("--yes", action="store_true", help="it is meant; without it nothing is changed")
    erase.add_argument("--note", default="", help="who asked for it and how, without naming the person")
    touched = actions.add_parser("touched", help="what a rater's comparisons went into")
    touched.add_argument("handle")
    show = actions.add_parser("show", help="a rater in figures: time per task, agreement, repeats, dialogues")
    show.add_argument("handle")
    read = actions.add_parser("read", help="a dialogue with every pair and choice, as JSON")
    read.add_argument("dialogue", type=int, help="its id, from `rater show`")
    sign_out = actions.add_parser("sign-out", help="end every session of a rater in a browser")
    sign_out.add_argument("handle")
    listing = actions.add_parser("list", help="raters and how many comparisons each made")
    for action in (add, token, status, withdraw, erase, touched, show, read, sign_out, listing):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    if args.action == "erase":
        return _erase(args)
    with session(Settings.from_env().require_database_url()) as database:
        if args.action == "add":
            rater, token = raters.create_rater(database, args.handle, kind=args.kind, platform=args.platform)
            shown: Any = {"id": rater.id, "handle": rater.handle, "kind": rater.kind, "token": token}
        elif args.action == "token":
            shown = {"handle": args.handle, "token": raters.renew_token(database, args.handle)}
        elif args.action == "status":
            shown = {"handle": args.handle, "status": raters.set_status(database, args.handle, args.status).status}
        elif args.action == "show":
            shown = _figures(database, raters.get_rater(database, args.handle).id)
        elif args.action == "read":
            shown = _dialogue(database, args.dialogue)
        elif args.action == "sign-out":
            from orchestrator.people.access import end_sessions_of

            end_sessions_of(database, raters.get_rater(database, args.handle).id)
            shown = {"signed out": args.handle}
        elif args.action in ("withdraw", "touched"):
            if args.action == "withdraw":
                withdrawal.withdraw(database, args.handle, args.note)
            found = withdrawal.touched(database, raters.get_rater(database, args.handle).id)
            shown = {"handle": args.handle, **found.to_json()}
        else:
            shown = _listing(database)
    if args.json or args.action == "read":
        print(json.dumps(shown, indent=2, default=str, ensure_ascii=False))
    elif isinstance(shown, list):
        print_table(shown, "No raters yet. Add one with `orchestrator rater add HANDLE`.")
    elif "artifacts" in shown:
        _print_touched(shown)
    elif args.action == "show":
        _print_figures(shown)
    else:
        print("\n".join(f"{key}: {value}" for key, value in shown.items()))
        if "token" in shown:
            print("The token is not stored and can't be shown again.")
    return 0


def _erase(args: argparse.Namespace) -> int:
    from orchestrator.commands.progress import Progress
    from orchestrator.people.erasure import erase
    from orchestrator.store.artifacts import ArtifactStore

    settings = Settings.from_env()
    url = settings.require_database_url()
    if not args.yes:
        with session(url) as database:
            found = withdrawal.touched(database, raters.get_rater(database, args.handle).id)
        print(
            f"Nothing was changed. {args.handle} made {found.comparisons} comparisons; "
            f"{len(found.artifacts)} artifacts, "
            f"{len(found.deployments)} deployments and {len(found.reply_ids)} served replies came of them: see "
            "`orchestrator rater touched`. "
            "Erasing can't be undone: say --yes."
        )
        return 1
    engine = make_engine(url)
    try:
        store = ArtifactStore(settings.artifact_url, settings.home / "cache")
        # Not by the handle, which is what is to be forgotten.
        done = erase(engine, store, args.handle, args.note, Progress("artifacts looked through"))
        with transaction(engine) as database:
            # By its id: the record of who erased must not keep the name that is erased.
            record_act(database, machine_user(), "erase", f"rater {done.rater_id}")
    finally:
        engine.dispose()
    if args.json:
        print(json.dumps(asdict(done), indent=2))
        return 0
    print(f"erased: rater {done.rater_id}, now erased-{done.rater_id}")
    print(f"{done.comparisons} comparisons, {done.messages} messages, {done.replies} replies")
    for digest in done.artifacts:
        print(f"written anew: {digest}")
    print(
        "Weights that were trained on them stay. Workers' work/ and cache/, and backups: see "
        "docs/guides/let-people-in.md."
    )
    return 0


def _listing(database: Session) -> list[Mapping[str, object]]:
    count = func.count(t.Comparison.id).label("num_comparisons")
    rows = database.execute(
        select(t.Rater.id, t.Rater.handle, t.Rater.kind, t.Rater.platform, t.Rater.status, count)
        .outerjoin(t.Comparison, t.Comparison.rater_id == t.Rater.id)
        .group_by(t.Rater.id)
        .order_by(count.desc(), t.Rater.id)
    )
    return [dict(row._mapping) for row in rows]


def _figures(database: Session, rater_id: int) -> Mapping[str, object]:
    """What the desk shows of a rater."""
    from orchestrator.conversations.transcripts import dialogues_of
    from orchestrator.people import quality

    found = quality.figures_of(database, rater_id)
    agreement = quality.agreement(database).get(rater_id)
    assert found is not None
    return {
        "figures": asdict(found) | {"position_bias": found.position_bias},
        "agreement": None if agreement is None else asdict(agreement),
        "times": [asdict(row) for row in quality.times_by_task(database, rater_id)],
        "repeats": [{"times": times, "opening": text} for text, times in quality.repeated_openings(database, rater_id)],
        "dialogues": [asdict(row) for row in dialogues_of(database, rater_id, _DIALOGUES, 0)],
    }


def _dialogue(database: Session, dialogue_id: int) -> Mapping[str, object]:
    from orchestrator.conversations.transcripts import whole_dialogue

    found = whole_dialogue(database, dialogue_id)
    if found is None:
        raise raters.RaterError(
            f"There is no dialogue {dialogue_id}. `orchestrator rater show HANDLE` lists a rater's."
        )
    return asdict(found)


def _print_figures(shown: Mapping[str, Any]) -> None:
    for name, value in shown["figures"].items():
        print(f"{name}: {in_short(value)}")
    agreement = shown["agreement"]
    print("agreement: " + ("-" if agreement is None else f"{agreement['accuracy']:.2f} of {agreement['n']}"))
    for title in ("times", "repeats", "dialogues"):
        print(f"\n{title}")
        print_table(shown[title], "None.")


def _print_touched(shown: Mapping[str, Any]) -> None:
    since = f"withdrew on {shown['withdrawn_at']}" if shown["withdrawn_at"] else "takes part"
    print(f"{shown['handle']}: {shown['comparisons']} comparisons, {since}. They went into:")
    print_table(
        [row | {"digest": row["digest"][:19]} for row in shown["artifacts"]],
        "No artifact.",
    )
    print()
    print_table(shown["deployments"], "No deployment answered raters with any of it.")
    print(f"{len(shown['reply_ids'])} served replies came of it; --json gives their ids.")
