"""`orchestrator ood`: fit a detector of far requests by hand, and list those there are."""

from __future__ import annotations

import argparse
import json

from sqlalchemy import select

from db import tables as t
from db.session import session
from models.detectors.results import Beyond, DetectorResults
from models.runtime.results import result_from_json
from orchestrator.commands.cycles.artifacts import described
from orchestrator.commands.printing import print_table
from orchestrator.config import OodSection, parse_config
from orchestrator.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", help="fit a detector; `serve-policy --detector DIGEST` puts it before the policies")
    fit.add_argument("--policy", metavar="ID", help="policy whose hidden states are read (default: newest initial one)")
    fit.add_argument(
        "--prompts", metavar="ID|FILE", help="prompt set, or a file of prompts, that are not far (default: newest set)"
    )
    fit.add_argument("--detector", choices=("relative", "mahalanobis", "exposure"), help="(default: relative)")
    fit.add_argument("--layer", type=int, help="layer to read, 0: embeddings (default: chosen with the examples)")
    fit.add_argument("--home", choices=("helpful", "harmless"), help="kind of prompts not far (default: helpful)")
    fit.add_argument("--examples", metavar="FILE", help="prompts to find (.txt: one a line; or JSONL)")
    fit.add_argument("--quantile", type=float, help="share of unseen prompts within the threshold (default: 0.99)")
    fit.add_argument("--seed", type=int, default=0, help="draws which prompts fit, choose and judge")
    fit.add_argument("--fresh", action="store_true", help="fit anew, even where one like it is there already")
    listing = actions.add_parser("list", help="detectors, newest first")
    for action in (fit, listing):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    return {"fit": _fit, "list": _list}[args.action](args)


def _fit(args: argparse.Namespace) -> int:
    from orchestrator.stages.detectors import fit_by_hand

    given = {
        "detector": args.detector,
        "layer": args.layer,
        "home": args.home,
        "examples_file": args.examples,
        "quantile": args.quantile,
    }
    section = parse_config({k: v for k, v in given.items() if v is not None}, "the options", OodSection)
    artifact = fit_by_hand(section, policy=args.policy, prompts=args.prompts, seed=args.seed, fresh=args.fresh)
    if args.json:
        print(json.dumps(described(artifact, None), indent=2))
        return 0
    results = result_from_json(DetectorResults, artifact.results, where=f"the results of detector {artifact.id}")
    alarms, others, examples = results.false_alarms, results.others, results.examples
    print(
        f"Detector {artifact.id}: {results.kind}, layer {results.layer} (by {results.layer_chosen_by}), "
        f"threshold {results.threshold:.4g}\n"
        f"unseen prompts of home beyond it: {alarms.beyond} of {alarms.n} ({_interval(alarms)})"
    )
    if others is not None:
        print(
            f"prompts of the other kind beyond it: {others.beyond} of {others.n} ({_interval(others)}), "
            f"AUROC {others.auroc:.3f}, of the length alone {others.length_auroc:.3f}"
        )
    if examples is not None:
        by_layer = examples.auroc_by_layer.items()
        shown = ", ".join(f"{key}: {value:.3f}" for key, value in by_layer if value is not None)
        print(f"AUROC of the examples by layer {shown}; of the length alone {examples.length_auroc:.3f}")
    print(f"orchestrator serve-policy --detector {artifact.digest}")
    return 0


def _interval(numbers: Beyond) -> str:
    low, high = numbers.ci
    return f"{numbers.share:.1%}, interval {low:.1%} to {high:.1%}"


def _list(args: argparse.Namespace) -> int:
    with session(Settings.from_env().require_database_url()) as database:
        found = database.execute(
            select(t.Artifact, t.Cycle.number)
            .outerjoin(t.Cycle, t.Cycle.id == t.Artifact.cycle_id)
            .where(t.Artifact.kind == "ood_detector")
            .order_by(t.Artifact.id.desc())
        ).all()
        rows = [described(artifact, number) for artifact, number in found]
        fitted = [
            result_from_json(DetectorResults, artifact.results, where=f"the results of detector {artifact.id}")
            for artifact, _ in found
        ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    shown = [
        {
            "id": row["id"],
            "digest": row["digest"][:19],
            "kind": detector.kind,
            "layer": detector.layer,
            "threshold": f"{detector.threshold:.4g}",
            "false alarms": _interval(detector.false_alarms),
            "cycle": row["cycle"],
        }
        for row, detector in zip(rows, fitted, strict=True)
    ]
    print_table(shown, "No detectors yet. Fit one with `orchestrator ood fit`.")
    return 0
