"""`orchestrator demo`: three cycles of the loop in a small world of synthetic raters, in minutes."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.world.report import Report


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--exit",
        action="store_true",
        help="end by itself: status 0 where the last policy beats the initial one, 1 where it does not, 2 on an error",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: section.key=value"
    )
    parser.add_argument("--seed", type=int, help="seed of everything random (default: 0)")
    parser.add_argument("--cycles", type=int, default=3, help="how often the loop turns (default: 3)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in place of examples/demo.toml")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of demo-report.json and .png (default: here)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; status 1 says "no improvement" and nothing else, so an unforeseen error is 2."""
    from orchestrator.errors import OrchestratorError

    try:
        return _run(args)
    except OrchestratorError:
        raise
    except Exception:
        traceback.print_exc()
        return OrchestratorError.exit_status


def _run(args: argparse.Namespace) -> int:
    """Run the demo, write its report, and stay up until Ctrl-C unless told to exit."""
    # Set here, because a shell script that starts us in the background has SIGINT ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    started_s = time.monotonic()
    from orchestrator.config import load_config
    from orchestrator.errors import ConfigError
    from orchestrator.instance.up import Instance, addresses, reaching
    from orchestrator.settings import Settings
    from orchestrator.world import demo, report
    from orchestrator.world.console import Console
    from orchestrator.world.requests import questions_to_try
    from orchestrator.world.settings import EXAMPLE, DemoConfig, free_home

    overrides = [*args.set, *([f"seed={args.seed}"] if args.seed is not None else [])]
    config = load_config(args.config or EXAMPLE, overrides, DemoConfig)
    if args.cycles < 1:
        raise ConfigError(f"--cycles is {args.cycles}; the loop turns at least once.")
    if not args.out.is_dir():
        raise ConfigError(f"--out names {args.out}, which is no folder.")
    settings = Settings.from_env(find_instance=False)
    home = free_home(settings.home, config, args.cycles)
    # Of a demo that goes on the rows tell what is left, once the database is up.
    goes_on = (home / "cycle.toml").exists()
    console = Console([] if goes_on else demo.phases(args.cycles))
    console.begin("start")
    console.say(f"instance in {home}")
    config_file = demo.prepare_inputs(config, home)
    # Its jobs take one thread each, which is fastest for a model this small; evaluations use the other cores.
    os.environ.setdefault("ORCHESTRATOR_JOBS_AT_ONCE", str(min(os.cpu_count() or 1, 3)))
    with Instance(home, config=config_file, database_url=settings.database_url, report=console.say) as instance:
        try:
            for name, value in addresses(instance).items():
                console.say(f"{name + ':':15}{value}")
            console.say(f"to use it in another terminal: {reaching(home)}")
            turns = demo.Demo(config, args.cycles, instance, console, waits=not args.exit)
            if goes_on:
                console.plan(demo.phases(args.cycles))
            with demo.counted_seconds(home, started_s, turns) as seconds:
                ended = turns.run()
            found = report.gather(ended, config.seed, seconds())
            console.end()
            _report(found, home, args.out, addresses(instance))
            if not args.exit:
                _stay_up(reaching(home), questions_to_try(config.seed))
        finally:
            # A second Ctrl-C must not interrupt the database's shutdown.
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)
    if not args.exit:
        return 0
    verdict = "lies above" if found.improved else "does not lie above"
    print(f"The last policy's Elo interval {verdict} the initial policy's.", flush=True)
    return 0 if found.improved else 1


def _report(found: Report, home: Path, out: Path, addresses: Mapping[str, str]) -> None:
    """Write the report, and say what it found and where the demo is reached."""
    from orchestrator.world import report

    for folder in (home, out):
        report.write(found, folder)
    print(f"\n{report.table(found)}\n", flush=True)
    print(f"{found.seconds:.0f} s. Wrote {out / 'demo-report.json'} and demo-report.png.", flush=True)
    print("How long each stage took: demo-report.json, and `orchestrator cycle show N` for a cycle.", flush=True)
    for name, value in addresses.items():
        print(f"{name + ':':15}{value}", flush=True)


def _stay_up(reached_by: str, questions: Iterable[str]) -> None:
    """Say what can be done with the demo, and wait for Ctrl-C."""
    print(f"\nIn another terminal: {reached_by}")
    print('There `orchestrator invite add "me"` gives a link for chatting. Its world is small; it knows:')
    for question in questions:
        print(f"    {question}")
    print("Up. Ctrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
