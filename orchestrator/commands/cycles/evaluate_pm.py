"""`orchestrator evaluate-pm FILE...`: a preference model on pairs of published benchmarks, such as LLMBar."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.preference.results import Accuracy
    from orchestrator.judging.benchmarks import FileAccuracy


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pairs in any format that can be imported")
    parser.add_argument(
        "--preference-model",
        metavar="MODEL",
        help="id or digest of the artifact, or a folder with a preference model (default: the newest artifact)",
    )
    parser.add_argument("--question", choices=["helpful", "harmless"], help="what is asked, where the files don't say")
    parser.add_argument("--mistakes", action="store_true", help="list the most confident mistakes too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Score the pairs of every file."""
    from models.runtime.results import part_to_json
    from orchestrator.data.formats.reading import check_openable
    from orchestrator.judging.benchmarks import evaluate
    from orchestrator.settings import Settings

    check_openable(args.files)
    settings = Settings.from_env()
    model, name = _model(args.preference_model, settings)
    found = evaluate(model, args.files, settings, args.question)
    if args.json:
        print(json.dumps({"preference_model": name, **part_to_json(found)}, indent=2))
        return 0
    print(f"Preference model: {name}")
    for file, measured in found.files.items():
        print(f"{file}: {_accuracy(measured)}{_left_out(measured)}")
    if len(found.files) > 1:
        print(f"all together: {_accuracy(found.all)}")
    if args.mistakes:
        for pair in found.mistakes:
            print(f"{pair.gap:8.2f}  {pair.id}")
    return 0


def _model(reference: str | None, settings: Any) -> tuple[Path, str]:
    """The folder of the preference model that is meant, and what it is called.

    Raises:
        ArtifactError: there is none, or the artifact is of another kind.
    """
    if reference is not None and Path(reference).is_dir():
        return Path(reference).absolute(), reference
    from db.session import session
    from orchestrator.store import ledger
    from orchestrator.store.artifacts import ArtifactStore

    with session(settings.require_database_url()) as database:
        found = ledger.named_or_newest(
            database,
            reference,
            ("preference_model",),
            ~ledger.is_watcher(),
            nothing="There is no preference model yet; a cycle trains one, or name a folder.",
        )
        digest, name = found.digest, f"artifact {found.id} ({found.digest[:19]})"
    return ArtifactStore(settings.artifact_url, settings.home / "cache").fetch(digest), name


def _accuracy(found: Accuracy) -> str:
    if not found.n:
        return "no pair that fits"
    low, high = found.ci
    fewer = f" from {found.dialogues} dialogues" if found.dialogues not in (None, found.n) else ""
    return f"{found.accuracy:.3f} [{low:.3f}, {high:.3f}] of {found.n} pairs{fewer} ordered rightly"


def _left_out(found: FileAccuracy) -> str:
    unread = {"too_long": found.too_long, "refused_by_template": found.refused_by_template}
    reasons = {**found.left_out, **{reason: count for reason, count in unread.items() if count}}
    return "; left out: " + ", ".join(f"{reason} {count}" for reason, count in reasons.items()) if reasons else ""
