"""`orchestrator up`: run everything on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from pathlib import Path

from orchestrator.http_shared.addresses import port_number
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="what the weekly cycle trains; sets its schedule (default: both stay as they are)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    for name, service in (("feedback", "feedback app"), ("policy", "policy server"), ("prefect", "Prefect server")):
        parser.add_argument(
            f"--{name}-port", type=port_number, default=0, help=f"port of the {service} (default: a free one)"
        )
    parser.add_argument(
        "--claim", action="store_true", help="the database is new or restored: take over the home's Prefect server"
    )
    parser.add_argument("--no-workers", action="store_true", help="leave the work pools to workers elsewhere")


def run(args: argparse.Namespace) -> int:
    """Start the instance, print its addresses, and stay until SIGINT or SIGTERM."""
    # Set here, because a shell script that starts us in the background has SIGINT ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    # Postgres, migrations and the supervisor are imported only to run them, not for --help.
    from orchestrator.instance.up import Instance, addresses

    if args.config is not None:
        from orchestrator.config import load_config

        # Before anything is started: what is misspelt there is told at once.
        load_config(args.config)
    settings = Settings.from_env(find_instance=False)
    with Instance(
        settings.home,
        feedback_port=args.feedback_port,
        policy_port=args.policy_port,
        prefect_port=args.prefect_port,
        host=args.host,
        workers=not args.no_workers,
        config=args.config,
        claim=args.claim,
        database_url=settings.database_url,
    ) as instance:
        # Whoever reads "Up." may end us at once; from the first line on that is a clean end.
        with contextlib.suppress(KeyboardInterrupt):
            for name, value in addresses(instance).items():
                print(f"{name + ':':15}{value}", flush=True)
            print("Up. Ctrl-C ends it.", flush=True)
            threading.Event().wait()
        # A second Ctrl-C must not interrupt the database's shutdown.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        print("Stopping.", flush=True)
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
