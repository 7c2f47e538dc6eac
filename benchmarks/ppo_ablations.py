"""What each choice of PPO that the paper leaves open does, in two worlds.

    python -m benchmarks.ppo_ablations [--seeds 2] [--iterations 24] [--only critic]
    python -m benchmarks.ppo_ablations --home DIR/small [--seeds 2] [--iterations 12] [--only critic]

The first is the world whose best policy is known: a Markdown table of the distance from the best policy (KL(pi*, pi) in
nats, lower is better), the objective reached in the last rollouts, KL, and how much of the returns the critic explains,
each as mean and range over the seeds. A variant takes 6 seconds of CPU a seed.

With `--home` it is real text: initial policy, preference model and prompts of the instance that
`python -m benchmarks.real_text --size small --home DIR` left, and the product's defaults as the base. An interrupted
table goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.known_answer import distance_from_optimum, train, write_world

KL_COEF = 0.3
BASE: dict[str, Any] = {
    "kl_coef": KL_COEF,
    "prompts_per_iteration": 256,
    "minibatch_replies": 256,
    "halve_every_samples": 2000,
}
# One change each against the settings of known_answer.py, and the product's defaults in the last line.
VARIANTS: dict[str, dict[str, Any]] = {
    "base: GAE λ 1, shared critic, no whitening, k1 per token, fixed": {},
    "GAE λ 0.95": {"gae_lambda": 0.95},
    "GAE λ 0.5": {"gae_lambda": 0.5},
    "GAE λ 0": {"gae_lambda": 0.0},
    "critic detached": {"critic": "detached"},
    "critic separate": {"critic": "separate"},
    "critic separate, 4 iterations of warm-up": {"critic": "separate", "critic_warmup_iterations": 4},
    "critic shared, 4 iterations of warm-up": {"critic_warmup_iterations": 4},
    "whitened": {"whiten_advantages": True},
    "k1 per reply": {"kl_placement": "per_reply"},
    "k3 per token": {"kl_estimator": "k3"},
    "k3 in the loss": {"kl_estimator": "k3", "kl_placement": "loss"},
    "full per token": {"kl_estimator": "full"},
    "full in the loss": {"kl_estimator": "full", "kl_placement": "loss"},
    "adaptive, target 0.4 nats from 0.1": {"kl_coef": 0.1, "kl_target_nats": 0.4, "kl_horizon_samples": 512},
    "defaults (λ 0.95, whitened)": {"gae_lambda": 0.95, "whiten_advantages": True},
}

# On real text: one change each against the product's defaults.
REAL_BASE: dict[str, Any] = {"prompts_per_iteration": 64, "minibatch_replies": 32, "max_reply_tokens": 48}
REAL_VARIANTS: dict[str, dict[str, Any]] = {
    "defaults: GAE λ 0.95, shared critic, whitened, k1 per token, fixed": {},
    "GAE λ 1": {"gae_lambda": 1.0},
    "critic detached": {"critic": "detached"},
    "critic separate": {"critic": "separate"},
    "critic from the preference model": {"critic": "preference_model"},
    "critic from the preference model, 3 iterations of warm-up": {
        "critic": "preference_model",
        "critic_warmup_iterations": 3,
    },
    "not whitened": {"whiten_advantages": False},
    "k1 per reply": {"kl_placement": "per_reply"},
    "full in the loss": {"kl_estimator": "full", "kl_placement": "loss"},
    "adaptive, target 1 nat": {"kl_target_nats": 1.0},
}
LAST = 4  # rollouts that a figure is the mean of


def spread(values: list[float]) -> str:
    """Mean, and the range where there are several."""
    mean = sum(values) / len(values)
    return f"{mean:.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def last_means(metrics: Path) -> dict[str, float]:
    """Each number's mean over the last rollouts that a run learned from."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "stopped" not in line][-LAST:]
    return {name: sum(line[name] for line in lines) / len(lines) for name in lines[0] if name in lines[-1]}


def known_answer(seeds: int, iterations: int, only: str) -> None:
    """The table in the world whose best policy is known."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = write_world(folder / "world")
        print(
            f"Before training: {distance_from_optimum(world, world / 'initial', KL_COEF, 2):.3f} nats from the best.\n"
        )
        print(
            "| variant | from the best, nats | score − 0.3·KL | KL, nats | explained variance |\n|---|---|---|---|---|"
        )
        for number, (title, change) in enumerate(VARIANTS.items()):
            if only not in title:
                continue
            columns: list[list[float]] = [[], [], [], []]
            for seed in range(seeds):
                out = folder / f"{number}-{seed}"
                training = train(world, out, BASE | {"iterations": iterations} | change, seed)
                means = last_means(out / "metrics.jsonl")
                kl = means["objective/kl"]
                columns[0].append(distance_from_optimum(world, training.policy.model, KL_COEF, 2))
                columns[1].append(means["objective/scores"] - KL_COEF * kl)
                columns[2].append(kl)
                columns[3].append(means["val/explained_variance"])
            print(f"| {title} | {' | '.join(map(spread, columns))} |", flush=True)


def real_text(home: Path, seeds: int, iterations: int, only: str) -> None:
    """The table on real text, from an instance that the benchmark of that name left."""
    from sqlalchemy import select

    from db import tables as t
    from db.session import session
    from orchestrator.instance.training_jobs import run_job
    from orchestrator.instance.up import Instance
    from orchestrator.store.artifacts import ArtifactStore

    with Instance(home, workers=False) as instance:
        store = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache")
        with session(instance.database_url) as rows:
            newest = {
                artifact.kind: artifact for artifact in rows.scalars(select(t.Artifact).order_by(t.Artifact.id)).all()
            }
    settings = newest["snapshot"].settings["settings"]
    kinds = {"initial": "initial_policy", "preference_model": "preference_model", "prompts": "prompt_set"}
    inputs = {role: store.fetch(newest[kind].digest) for role, kind in kinds.items()}
    kept = {name: settings[name] for name in ("learning_rate", "kl_coef")}
    print(f"{kept}, {REAL_BASE}, {iterations} iterations\n")
    print("| variant | score | KL, nats | score − λ·KL | explained variance | seconds |\n|---|---|---|---|---|---|")
    for title, change in REAL_VARIANTS.items():
        if only not in title:
            continue
        columns: list[list[float]] = [[], [], [], [], []]
        for seed in range(seeds):
            work = home / "ablations" / f"{title}, {iterations} iterations, seed {seed}".replace(" ", "_")
            told = REAL_BASE | kept | {"iterations": iterations, "logp_every": 0, "checkpoint_every": 1000} | change
            run_job("train_policy", inputs=inputs, settings=told, seed=seed, work=work)
            means = last_means(work / "metrics.jsonl")
            score, kl = means["objective/scores"], means["objective/kl"]
            columns[0].append(score)
            columns[1].append(kl)
            columns[2].append(score - kept["kl_coef"] * kl)
            columns[3].append(means["val/explained_variance"])
            columns[4].append(json.loads((work / "run.json").read_text())["train_seconds"])
        print(f"| {title} | {' | '.join(map(spread, columns))} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, help="by default 24, on real text 12")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--home", type=Path, help="the instance of the size, DIR/small")
    args = parser.parse_args()
    began_s = time.process_time()
    if args.home:
        real_text(args.home.resolve(), args.seeds, args.iterations or 12, args.only)
        return 0
    known_answer(args.seeds, args.iterations or 24, args.only)
    print(f"\n{time.process_time() - began_s:.0f} s of CPU")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
