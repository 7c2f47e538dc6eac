"""One cycle on a published model, through the product's own commands: what its preference model learned, and replies.

    python -m benchmarks.real_model FOLDER [--home DIR] [--train 0.5] [--held-out 0.333] [--iterations 4]

FOLDER is a Hugging Face folder. A seeded part of the helpful comparisons of $ORCHESTRATOR_DATA is trained on, and a
seeded part of its development file held out. Printed are the held-out accuracy with its interval, "the longer reply
wins" on the same pairs, the paired difference of the two, PPO's course, old and new replies to held-out prompts, and
one reply of the policy server. The numbers go to docs/explanation/results/real_model.json with the hardware they were
measured on. With `--home` an interrupted run goes on.

Two CPU cores take 46 minutes for 268 M weights with a quarter of the training file, most of them for the preference
model.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from benchmarks.hh_weeks import HELPFUL, ROOT, data_folder, ended_cycles, orchestrator
from benchmarks.real_text import hardware
from db import tables as t
from db.session import session
from models.preference.report import ScoredPair
from models.statistics.intervals import mean_interval
from orchestrator.instance.up import Instance
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.world.settings import write_toml

Numbers = dict[str, Any]
SAMPLES = 3
QUESTION = "How do I keep bread fresh?"


def main() -> int:
    """Run the cycle and print what came of it."""
    args = _arguments()
    data = data_folder()
    # Ended from outside, the instance and the command that runs against it must end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        home = args.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="real-model-")))
        numbers = measure(args, home, data / HELPFUL)
    out = args.docs / "explanation" / "results"
    out.mkdir(parents=True, exist_ok=True)
    (out / "real_model.json").write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(told(numbers))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="FOLDER")
    parser.add_argument("--home", type=Path, help="keep the instance here; default a folder that is removed")
    parser.add_argument("--train", type=float, default=0.5, help="share of the training file")
    parser.add_argument("--held-out", type=float, default=1 / 3, help="share of the development file")
    parser.add_argument("--iterations", type=int, default=4, help="of PPO, 16 replies each")
    parser.add_argument("--reply-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each job; default all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    return parser.parse_args()


def configuration(args: argparse.Namespace) -> Numbers:
    """The cycle's configuration; what it leaves out a published model gets by its size."""
    return {
        "name": "published model",
        "seed": args.seed,
        "initial_policy": {"path": str(args.model.resolve())},
        "cycle": {"min_comparisons": 1},
        # The development file is pinned; of the training file hardly anything is held out beside it.
        "comparisons": {"held_out_fraction": 0.001},
        "preference_model": {"max_tokens": 512, "batch_pairs": 16, "threads": args.threads},
        "orientation": {"contradicting_source": "report"},
        "ppo": {
            "iterations": args.iterations,
            "prompts_per_iteration": 16,
            "minibatch_replies": 8,
            "epochs": 1,
            "max_reply_tokens": args.reply_tokens,
            "logp_every": 0,
            "threads": args.threads,
        },
        "evaluation": {
            "num_prompts": 32,
            "best_of": 1,
            "max_reply_tokens": args.reply_tokens,
            "threads": args.threads,
        },
        "serving": {"max_reply_tokens": args.reply_tokens},
    }


def part_of(file: Path, share: float, seed: int) -> list[str]:
    """So many of a file's lines, drawn by the seed, in the file's order."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        lines = opened.readlines()
    drawn = random.Random(f"{file.name} {seed}").sample(range(len(lines)), round(share * len(lines)))
    return [lines[index] for index in sorted(drawn)]


def paired_difference(pairs: Sequence[ScoredPair]) -> tuple[float, float, float]:
    """(difference, low, high): accuracy less that of "the longer reply wins" on the same pairs; ties are half right.

    The interval is by dialogues.
    """
    differences = [_right(pair.gap) - _right(pair.length_difference) for pair in pairs]
    return mean_interval(differences, clusters=[pair.dialogue for pair in pairs])


def _right(gap: float) -> float:
    return 0.5 if gap == 0 else float(gap > 0)


def measure(args: argparse.Namespace, home: Path, data: Path) -> Numbers:
    """Run the cycle on a home of its own, or find it there, and gather its numbers."""
    started_s = time.monotonic()
    with Instance(home, workers=False) as instance:
        if not ended_cycles(instance.database_url):
            file = instance.home / "real_model.toml"
            write_toml(configuration(args), file, "python -m benchmarks.real_model")
            for name, share, options in (
                ("train_a", args.train, []),
                ("dev", args.held_out, ["--split", "held_out"]),
            ):
                part = instance.home / "parts" / f"{name}.jsonl"
                part.parent.mkdir(exist_ok=True)
                part.write_text("".join(part_of(data / f"{name}.jsonl.gz", share, args.seed)), encoding="utf-8")
                orchestrator(instance, "import", "--question", "helpful", "--source", HELPFUL, *options, str(part))
            orchestrator(instance, "cycle", "run", "--inline", "--config", str(file))
        store = ArtifactStore(f"file://{instance.home / 'artifacts'}", instance.home / "cache")
        with session(instance.database_url) as rows:
            newest = {
                artifact.kind: artifact.digest for artifact in rows.scalars(select(t.Artifact).order_by(t.Artifact.id))
            }
        scored = [
            ScoredPair(**json.loads(line))
            for line in (store.fetch(newest["preference_model"]) / "held_out_scores.jsonl").read_text().splitlines()
        ]
        report = store.fetch(newest["report"])
        numbers: Numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
        samples = [json.loads(line) for line in (report / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
        held_out = numbers["preference_model"]["held_out"]
        return {
            "hardware": hardware(args.threads),
            "seconds": round(time.monotonic() - started_s),
            "num_parameters": numbers["preference_model"]["num_parameters"],
            "num_train": numbers["preference_model"]["num_train"],
            "held_out": {key: held_out[key] for key in ("accuracy", "ci", "n", "longer_wins")},
            "over_longer_wins": list(paired_difference(scored)),
            "doubts": numbers["doubts"],
            "curve": numbers["training"]["curve"],
            "stopped": numbers["training"]["stopped"],
            "evaluation": numbers["evaluation"],
            "initial_evaluation": numbers["initial_evaluation"],
            "decision": numbers["decision"],
            "samples": samples[: 2 * SAMPLES],
            "served": _served(instance),
        }


def _served(instance: Instance) -> str:
    """A reply of what is live."""
    answer = httpx.post(
        f"{instance.policy_url}/v1/chat/completions",
        json={
            "model": "policy-live",
            "messages": [{"role": "user", "content": QUESTION}],
            "seed": 1,
        },
        timeout=600,
        trust_env=False,
    )
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


def told(numbers: Numbers) -> str:
    """The numbers as people read them."""
    held_out, (difference, low, high) = numbers["held_out"], numbers["over_longer_wins"]
    longer = held_out["longer_wins"]
    lines = [
        f"{numbers['num_parameters'] / 1e6:.0f} M weights, {numbers['num_train']} comparisons, {numbers['seconds']} s "
        f"on {numbers['hardware']}",
        *(f"doubt: {doubt}" for doubt in numbers["doubts"]),
        f"held-out accuracy {held_out['accuracy']:.3f} {_interval(held_out['ci'])} of {held_out['n']}; the longer "
        f"reply wins {longer['accuracy']:.3f} {_interval(longer['ci'])}",
        f"paired difference {difference:+.3f} {_interval([low, high])}",
        *(
            f"PPO after {point['samples']} replies: score {point['score']:+.3f}, KL {point['kl_nats']:.3f} nats"
            for point in numbers["curve"]
        ),
        f"stopped: {numbers['stopped'] or 'no'}; decision: {numbers['decision']}",
        *(f"{one['policy']}: {one['reply']!r}" for one in numbers["samples"]),
        f"served: {numbers['served']!r}",
    ]
    return "\n".join(lines)


def _interval(ci: Sequence[float | None]) -> str:
    return "[" + ", ".join("?" if end is None else f"{end:.3f}" for end in ci) + "]"


if __name__ == "__main__":
    sys.exit(main())
