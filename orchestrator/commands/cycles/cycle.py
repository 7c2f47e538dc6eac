"""`orchestrator cycle`: run a cycle, watch its PPO, list cycles, show one, decide about one, give one up."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.cycles import decide
from orchestrator.commands.starting import become_inline, checked_start, configure_start
from orchestrator.cycles.until import STAGES
from orchestrator.errors import CycleError, ServiceUnavailable
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.instance.prefect_api import PrefectApi
    from orchestrator.reports.numbers import CycleNumbers
    from orchestrator.reports.ppo_runs import Run

WATCH_POLL_S = 0.5


@dataclass(frozen=True)
class ListedCycle:
    """A line of `orchestrator cycle list`; times are ISO 8601."""

    cycle: int
    name: str
    state: str
    started_at: str
    ended_at: str | None
    note: str | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    start = actions.add_parser("run", help="run a cycle, or go on with the open one")
    configure_start(start, "TOML file that says what to train")
    start.add_argument(
        "--stage",
        choices=STAGES,
        metavar="STAGE",
        help=f"end after this stage ({', '.join(STAGES)}); with --fresh it alone is done anew",
    )
    watch = actions.add_parser("watch", help="follow the newest PPO run, on whichever machine it trains; waits for it")
    watch.add_argument("--once", action="store_true", help="what there is so far, without waiting")
    listing = actions.add_parser("list", help="cycles and how they ended")
    show = actions.add_parser("show", help="the report of a cycle")
    show.add_argument("number", type=int)
    show.add_argument(
        "--mistakes", action="store_true", help="the texts of what its preference model is most surely wrong about"
    )
    decide.configure(actions.add_parser("decide", help="promote or refuse the snapshot of a cycle that waits"))
    cancel = actions.add_parser("cancel", help="give up an open cycle, and end what works on it")
    cancel.add_argument("number", type=int)
    cancel.add_argument("--note", metavar="WHY", help="why, in a sentence; it stands on the record")
    for action in (listing, show):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    actions = {"run": _run, "watch": _watch, "list": _list, "show": _show, "decide": decide.run, "cancel": _cancel}
    return actions[args.action](args)


def _run(args: argparse.Namespace) -> int:
    checked_start(args)
    if args.inline:
        become_inline("flows.inline", args, ["--stage", args.stage] if args.stage else None)
    from orchestrator.cycles.runs import Progress, print_to_end, start_cycle
    from orchestrator.instance.identity import own_prefect

    api = own_prefect()
    # From here on: what happens between the start and the first look is news too.
    progress = Progress()
    flow_run_id = start_cycle(api, args.config, args.set, fresh=args.fresh, stage=args.stage)
    print_to_end(api, flow_run_id, progress.news, wait=not args.no_wait)
    return 0


def _watch(args: argparse.Namespace) -> int:
    from orchestrator.reports.ppo_progress import Table

    run = _run_to_watch(Settings.from_env(), wait=not args.once)
    print(run.title(), flush=True)
    _print_left()
    table = Table()
    while True:
        # Asked before reading, so that the last lines of a run that ends meanwhile are shown too.
        state = run.state()
        for row in table.rows(run.lines()):
            print(row, flush=True)
        if state != "running":
            print(run.last_words(state), flush=True)
            return 0 if state == "ended" else 1
        if args.once:
            return 0
        time.sleep(WATCH_POLL_S)


def _print_left() -> None:
    """How long the open cycle still takes as a whole, where the database can be asked."""
    from orchestrator.cycles.telling import loop_now
    from orchestrator.database import database

    if Settings.from_env().database_url is None:
        return
    with database() as session:
        cycle = loop_now(session).open_cycle
    if cycle is not None and cycle.left is not None:
        print(f"Cycle {cycle.number} as a whole: {cycle.left}.", flush=True)


def _run_to_watch(settings: Settings, *, wait: bool) -> Run:
    """The newest PPO run; where the open cycle is still to come to PPO, and `wait` says so, that one.

    Raises:
        CycleError: there is none and nothing is waited for, or the open cycle stopped before PPO.
    """
    from orchestrator.reports.ppo_runs import FileRun, ToldRun, before_ppo

    said = ""
    while True:
        cycle = before_ppo() if wait and settings.database_url is not None else None
        # Without the rows only the files of this machine tell.
        run: Run | None = FileRun.newest(settings.home / "work") if settings.database_url is None else ToldRun.newest()
        if run is not None and not (cycle is not None and cycle.awaited):
            return run
        if not wait:
            raise CycleError(f"No PPO run has told a line in {_where(settings)}.")
        if cycle is not None and cycle.stopped:
            raise CycleError(
                f"Cycle {cycle.number} stopped at {cycle.stage} before PPO wrote a line; `orchestrator cycle show "
                f"{cycle.number}` says why. Run the cycle, then watch again."
            )
        at = f"cycle {cycle.number} is at {cycle.stage or 'its beginning'}" if cycle else f"none in {_where(settings)}"
        if at != said:
            print(f"Waiting for PPO to tell its first line (Ctrl-C ends it): {at}.", flush=True)
        said = at
        time.sleep(WATCH_POLL_S)


def _where(settings: Settings) -> str:
    if settings.database_url is None:
        return f"{settings.home / 'work'}; no DATABASE_URL is set, so only runs of this machine can be seen"
    return "this database, and no cycle is open"


def _list(args: argparse.Namespace) -> int:
    from sqlalchemy import select

    from db import tables as t
    from orchestrator.database import database

    with database() as session:
        cycles = [
            ListedCycle(
                cycle.number,
                cycle.name,
                cycle.state,
                cycle.started_at.isoformat(timespec="seconds"),
                cycle.ended_at.isoformat(timespec="seconds") if cycle.ended_at else None,
                cycle.note,
            )
            for cycle in session.scalars(select(t.Cycle).order_by(t.Cycle.number))
        ]
    if args.json:
        print(json.dumps([asdict(cycle) for cycle in cycles], indent=2))
    elif not cycles:
        print("No cycle yet. Run one with `orchestrator cycle run --config FILE`.")
    else:
        for cycle in cycles:
            shown = [f"{cycle.cycle:>5}", f"{cycle.state:9}", cycle.started_at, cycle.name]
            print("  ".join([*shown, cycle.note or ""]).rstrip())
    return 0


def _show(args: argparse.Namespace) -> int:
    from orchestrator.cycles.record import cycle_id_of
    from orchestrator.cycles.telling import left_of
    from orchestrator.database import database
    from orchestrator.reports.cycle import cycle_numbers
    from orchestrator.reports.cycle_text import to_markdown
    from orchestrator.store.ledger import cycle_not_reproducible

    cycle_id = cycle_id_of(args.number)
    numbers = cycle_numbers(cycle_id)
    if args.mistakes:
        return _show_mistakes(cycle_id, numbers, as_json=args.json)
    with database() as session:
        erased = cycle_not_reproducible(session, cycle_id)
        left = left_of(session, cycle_id)
    if args.json:
        print(json.dumps(numbers.to_json() | {"not_reproducible": erased}, indent=2))
    else:
        print(to_markdown(numbers), end="")
        if left is not None:
            print(f"\nThe cycle is at work: {left}.")
        folder = _pictures(cycle_id)
        if folder is not None:
            print(f"\nThe pictures: {folder}")
        if erased:
            print(f"\nThis cycle is {erased}.")
    return 0


def _pictures(cycle_id: int) -> Path | None:
    """The folder of the cycle's newest report, where it has pictures and the store still holds it."""
    from orchestrator.database import database
    from orchestrator.store import ledger
    from orchestrator.store.artifacts import ArtifactStore

    with database() as session:
        digest = ledger.newest_of(session, cycle_id, "report")
        place = ledger.place_of(session, digest) if digest is not None else None
    settings = Settings.from_env()
    store = ArtifactStore(settings.artifact_url, settings.home / "cache")
    if place is None or not store.exists(place):
        return None
    folder = store.fetch(place)
    return folder if any(folder.glob("*.png")) else None


def _show_mistakes(cycle_id: int, numbers: CycleNumbers, *, as_json: bool) -> int:
    from models.runtime.results import part_to_json
    from orchestrator.database import database
    from orchestrator.reports.mistakes import to_text, with_texts
    from orchestrator.store.artifacts import ArtifactStore

    model = numbers.preference_model
    if model is None:
        raise CycleError(f"Cycle {numbers.cycle} has no preference model yet.")
    settings = Settings.from_env()
    store = ArtifactStore(settings.artifact_url, settings.home / "cache")
    with database() as session:
        mistakes = with_texts(session, store, cycle_id, model.held_out.mistakes)
    if as_json:
        print(json.dumps([part_to_json(mistake) for mistake in mistakes], indent=2, ensure_ascii=False))
    else:
        print(to_text(mistakes), end="")
    return 0


def _cancel(args: argparse.Namespace) -> int:
    from orchestrator.cycles.cancelling import give_up
    from orchestrator.store.acts import machine_user, reason_of

    note = reason_of(args.note) if args.note is not None else None
    give_up(args.number, machine_user(), note, _prefect(), lambda line: print(line, flush=True))
    return 0


def _prefect() -> PrefectApi | None:
    """The Prefect server, where there is one; a cycle may have been run without."""
    from orchestrator.instance.identity import own_prefect

    try:
        return own_prefect()
    except ServiceUnavailable as error:
        print(f"note: {error} What is at work will notice by itself that its cycle is cancelled.", flush=True)
        return None
