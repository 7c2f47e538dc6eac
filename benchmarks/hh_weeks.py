"""Two weekly cycles on real human comparisons, through the product's own commands, and what the PM learned in each.

    python -m benchmarks.hh_weeks [--home DIR] [--config examples/hh.toml] [--set KEY=VALUE] [--controls 3] ...

Week 1 trains on helpful train_a and harmless train; train_b joins in week 2; the dev files are held out in both. For
every week and source it prints the held-out accuracy with its 95 % interval, beside "the longer reply wins", the same
model with length regressed out, and models trained on shuffled labels (`--controls` of them). It ends with status 1
where the helpful interval does not lie above 0.50 in both weeks, or shuffled labels are not at chance. With `--home`
an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from db import tables as t
from db.session import session
from orchestrator.instance.training_jobs import run_job
from orchestrator.instance.up import Instance
from orchestrator.store.artifacts import ArtifactStore

ROOT = Path(__file__).resolve().parent.parent
HELPFUL, HARMLESS = "hh_helpful_single_turn", "hh_harmless_base"
WEEKS: dict[int, list[tuple[list[str], list[str]]]] = {
    1: [
        ([], [f"{HELPFUL}/train_a.jsonl.gz", f"{HARMLESS}/train.jsonl.gz"]),
        (["--split", "held_out"], [f"{HELPFUL}/dev.jsonl.gz", f"{HARMLESS}/dev.jsonl.gz"]),
    ],
    2: [([], [f"{HELPFUL}/train_b.jsonl.gz"])],
}
"""What is imported before each week's cycle: options and files."""

Numbers = dict[str, Any]


def main() -> int:
    """Run both weeks, print the table, check the bound."""
    args = _arguments()
    data = data_folder()
    os.environ["ORCHESTRATOR_DATA"] = str(data)
    weeks: list[Numbers] = []
    # Ended from outside, the instance and the command that runs against it must end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        home = args.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hh-weeks-")))
        instance = stack.enter_context(Instance(home, workers=not args.inline))
        for week, imports in WEEKS.items():
            started_s = time.monotonic()
            if args.only_week and week > args.only_week:
                break
            if ended_cycles(instance.database_url) < week:
                for options, files in imports:
                    orchestrator(instance, "import", *options, *(str(data / file) for file in files))
                inline = ["--inline"] if args.inline else []
                sets = [word for change in args.set for word in ("--set", change)]
                orchestrator(instance, "cycle", "run", "--config", str(args.config), *sets, *inline)
            numbers = _numbers(instance, week, args.controls) | {"week": week}
            weeks.append(numbers)
            print(f"week {week}: {time.monotonic() - started_s:.0f} s", flush=True)
    print(table(weeks))
    if args.json:
        args.json.write_text(json.dumps(weeks, indent=1) + "\n")
    failed = shortcomings(weeks)
    for line in failed:
        print(line)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="keep the instance here; default a folder that is removed")
    parser.add_argument("--config", type=Path, default=ROOT / "examples" / "hh.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--controls", type=int, default=3, help="models trained on shuffled labels, per week")
    parser.add_argument("--inline", action="store_true", help="run the cycles in one process, without Prefect")
    parser.add_argument("--only-week", type=int, choices=WEEKS, help="stop after this week")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    return parser.parse_args()


def data_folder() -> Path:
    """Where the real comparisons lie; ends the benchmark with status 2 where they don't."""
    data = Path(os.environ.get("ORCHESTRATOR_DATA") or ROOT.parent / "shared" / "data").resolve()
    if not (data / HELPFUL).is_dir():
        print(f"error: no data at {data}; set ORCHESTRATOR_DATA to the folder that holds {HELPFUL}", file=sys.stderr)
        sys.exit(2)
    return data


def orchestrator(instance: Instance, *words: str) -> None:
    """Run a command of the product against the instance; its output is ours."""
    print("$ orchestrator", " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "orchestrator.cli", *words], env=instance.env(), check=True)


def ended_cycles(database_url: str) -> int:
    """How many cycles ended with a decision, week 0 apart."""
    ended = select(func.count()).where(t.Cycle.number >= 1, t.Cycle.state.in_(("promoted", "refused")))
    with session(database_url) as rows:
        return rows.scalars(ended).one()


def _numbers(instance: Instance, week: int, num_controls: int) -> Numbers:
    """What the week's preference model got right, and what models trained on shuffled labels got right."""
    store = ArtifactStore(f"file://{instance.home / 'artifacts'}", instance.home / "cache")
    with session(instance.database_url) as rows:
        cycle = rows.scalars(select(t.Cycle).where(t.Cycle.number >= 1).order_by(t.Cycle.number)).all()[week - 1]
        model = rows.scalars(
            select(t.Artifact)
            .where(t.Artifact.kind == "preference_model", t.Artifact.cycle_id == cycle.id)
            .order_by(t.Artifact.id.desc())
        ).first()
        assert model is not None, f"cycle {cycle.number} left no preference model"
        inputs = {
            role: store.fetch(digest)
            for role, digest in rows.execute(
                select(t.LineageEdge.role, t.Artifact.digest)
                .join(t.Artifact, t.Artifact.id == t.LineageEdge.parent_id)
                .where(t.LineageEdge.child_id == model.id)
            )
        }
        sets = store.fetch(
            rows.scalars(
                select(t.Artifact.digest)
                .join(t.LineageEdge, t.LineageEdge.parent_id == t.Artifact.id)
                .where(t.LineageEdge.child_id == model.id, t.LineageEdge.role == "comparisons")
            ).one()
        )
        state, asked, results = cycle.state, model.settings, model.results
    controls = []
    for seed in range(num_controls):
        run = run_job(
            "train_preference_model",
            inputs=inputs,
            settings=asked["settings"] | {"shuffle_labels": True},
            seed=1000 + seed,
            work=instance.home / "work" / f"control-week-{week}-{seed}",
        )
        controls.append(json.loads((run.result / "results.json").read_text())["held_out"])
    return {
        "state": state,
        "num_train": results["num_train"],
        "dropped_too_long": results["dropped_too_long"],
        "excluded": json.loads((sets / "manifest.json").read_text()).get("excluded", {}),
        "held_out": results["held_out"],
        "shuffled": controls,
    }


def _entry(entry: Numbers) -> str:
    low, high = entry["ci"]
    return f"{entry['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _shuffled(controls: list[Numbers], source: str) -> list[float]:
    return [control["by_source"][source]["accuracy"] for control in controls]


# 97.5 % quantiles of Student's t distribution by the number of values (degrees of freedom plus one).
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def mean_of_models(accuracies: list[float]) -> tuple[float, tuple[float, float]]:
    """Mean accuracy of models that differ in their seed, with its 95 % interval over models.

    One model of shuffled labels leans some way at random, towards length for one, and is off 50 % by far more than
    the interval over pairs; only over models is the mean at chance. For 0.4, 0.5, 0.6: 0.5 ± 4.303·0.1/√3 = 0.248.
    """
    mean = statistics.mean(accuracies)
    count = len(accuracies)
    if count < 2:
        return mean, (0.0, 1.0)
    half = STUDENT_T[min(count, max(STUDENT_T))] * statistics.stdev(accuracies) / math.sqrt(count)
    return mean, (mean - half, mean + half)


def table(weeks: list[Numbers]) -> str:
    """Markdown: a row per week and source, intervals at 95 %."""
    rows = [
        "| week | source | held out | preference model | longer wins | length regressed out | shuffled labels |",
        "|---|---|---:|---|---|---|---|",
    ]
    for week in weeks:
        held_out = week["held_out"]
        for source, entry in held_out["by_source"].items():
            control = _shuffled(week["shuffled"], source)
            shown = "–"
            if control:
                mean, (low, high) = mean_of_models(control)
                shown = f"{mean:.3f} [{low:.3f}, {high:.3f}] of {', '.join(f'{share:.3f}' for share in control)}"
            rows.append(
                f"| {week['week']} | {source} | {entry['n']} | {_entry(entry)} | "
                f"{_entry(held_out['longer_wins']['by_source'][source])} | "
                f"{_entry(held_out['length_regressed']['by_source'][source])} | {shown} |"
            )
    for week in weeks:
        rows.append(
            f"\nWeek {week['week']}: {week['num_train']} comparisons trained on, {week['dropped_too_long']} too long, "
            f"left out {week['excluded']}; cycle {week['state']}."
        )
    return "\n".join(rows)


def shortcomings(weeks: list[Numbers]) -> list[str]:
    """What does not hold: helpful above 0.50 in every week, and shuffled labels at chance."""
    failed = []
    for week in weeks:
        entry = week["held_out"]["by_source"][HELPFUL]
        if entry["ci"][0] <= 0.5:
            failed.append(f"week {week['week']}: the helpful interval {_entry(entry)} does not lie above 0.50")
        control = _shuffled(week["shuffled"], HELPFUL)
        if control:
            mean, (low, high) = mean_of_models(control)
            if not low <= 0.5 <= high:
                failed.append(
                    f"week {week['week']}: shuffled labels are not at chance: {mean:.3f} [{low:.3f}, {high:.3f}]"
                )
    return failed


if __name__ == "__main__":
    sys.exit(main())
