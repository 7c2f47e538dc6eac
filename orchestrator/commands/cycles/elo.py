"""`orchestrator elo`: where every contestant that raters compared stands."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--by", choices=("dialogue", "rater"), default="dialogue", help="what the intervals resample")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the standings on both axes."""
    from orchestrator.judging.standings import elo_tables

    with session(Settings.from_env().require_database_url()) as database:
        tables = elo_tables(database, args.by)
    if args.json:
        print(json.dumps([asdict(table) for table in tables], indent=2))
        return 0
    for table in tables:
        print(f"more {table.question}")
        rows = [
            {
                "contestant": row.title + (" (initial)" if row.anchor else ""),
                "cycle": row.cycle,
                "elo": f"{row.elo:+.0f}" if not row.anchor else "0",
                "interval": f"[{row.ci[0]:+.0f}, {row.ci[1]:+.0f}]" if not row.anchor else None,
                "comparisons": row.games,
                "won": row.won,
                "lost": row.lost,
                "tied": row.tied,
            }
            for row in table.rows
        ]
        print_table(rows, table.note or "")
        if rows and table.note:
            print(table.note)
        print()
    return 0
