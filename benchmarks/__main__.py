"""Runs the benchmarks one after another and says which of them missed a target.

    python -m benchmarks                 the learning ones: what `make bench` runs
    python -m benchmarks NAME...         these
    python -m benchmarks --list

Each is a module of its own with a command line of its own (`python -m benchmarks.NAME --help`), runs as a process of
its own, and ends with status 1 where a target is missed; so does this one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Run by default. To add one, write a module that returns 1 where it misses a target, and name it here.
LEARNING: tuple[str, ...] = ("preference_model_speed", "preference_model_scaling", "ppo_speed", "sampler_speed")
# Run when named: they need a database, a browser, real data, or several gigabytes of disk.
OTHERS = (
    "accuracy_intervals",
    "batch_order",
    "families",
    "feedback_throughput",
    "freeze",
    "gain_intervals",
    "hh_weeks",
    "idle_time",
    "known_answer",
    "launches",
    "lora_memory",
    "memory_table",
    "mutants",
    "ood",
    "pages",
    "policy_throughput",
    "ppo_ablations",
    "raters_load",
    "real_model",
    "real_text",
    "same_artifacts",
    "step_costs",
    "watch_false_alarms",
)


def about(name: str) -> str:
    """The first line of a benchmark's docstring."""
    return (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8").splitlines()[0].strip('" ')


def main() -> int:
    """Run what was asked for; 1 where any target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: the learning ones)")
    parser.add_argument("--list", action="store_true", help="name them all and run none")
    args = parser.parse_args()
    if args.list:
        for title, names in (("learning", LEARNING), ("when named", OTHERS)):
            print(title)
            for name in names:
                print(f"  {name:26} {about(name)}")
        return 0
    if unknown := sorted(set(args.names) - {*LEARNING, *OTHERS}):
        parser.error(f"no benchmark {', '.join(unknown)}; `python -m benchmarks --list` names them.")
    failed = []
    for name in args.names or LEARNING:
        print(f"== {name}: {about(name)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"missed a target or failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
