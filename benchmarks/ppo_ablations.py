"""What each choice of PPO that the paper leaves open does, on the world whose best policy is known; a minute of CPU.

    python -m benchmarks.ppo_ablations [--seeds 2] [--iterations 24] [--only critic]

Prints a Markdown table: distance from the best policy (KL(pi*, pi) in nats, lower is better), the objective reached in
the last rollouts, KL, and how much of the returns the critic explains, each as mean and range over the seeds.
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


def spread(values: list[float]) -> str:
    """Mean, and the range where there are several."""
    mean = sum(values) / len(values)
    return f"{mean:.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--only", default="", help="variants whose name contains this")
    args = parser.parse_args()
    began_s = time.process_time()
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
            if args.only not in title:
                continue
            columns: list[list[float]] = [[], [], [], []]
            for seed in range(args.seeds):
                out = folder / f"{number}-{seed}"
                training = train(world, out, BASE | {"iterations": args.iterations} | change, seed)
                lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-4:]

                def mean(name: str, lines: list[dict[str, float]] = lines) -> float:
                    return sum(line[name] for line in lines) / len(lines)

                kl = mean("objective/kl")
                columns[0].append(distance_from_optimum(world, training.policy.model, KL_COEF, 2))
                columns[1].append(mean("objective/scores") - KL_COEF * kl)
                columns[2].append(kl)
                columns[3].append(mean("val/explained_variance"))
            print(f"| {title} | {' | '.join(map(spread, columns))} |", flush=True)
    print(f"\n{time.process_time() - began_s:.0f} s of CPU")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
