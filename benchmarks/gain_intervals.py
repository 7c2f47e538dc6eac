"""How often the gate on the score gain passes a policy without gain, where prompts are turns of the same dialogues.

    python -m benchmarks.gain_intervals [--draws 3000] [--seed 0]

Dialogues of one prompt, of four, of uneven numbers (geometric, mean 3.3), of ten, and nine of one for each of ten; 30
to 500 prompts. Differences of scores are normal, with the correlation named within a dialogue; the true gain is 0.
Printed: in how many of a hundred draws the 95 % interval lies above 0 (nominal 2.5), with prompts taken as independent
and with ours. Status 1 where ours does so in more than 3.5 of any row.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from benchmarks.accuracy_intervals import DIALOGUES, dialogue_sizes
from models.statistics.intervals import mean_interval

PROMPTS = (30, 100, 200, 500)
CORRELATIONS = (0.0, 0.3, 0.8)
MOST_PER_CENT = 3.5


def main() -> int:
    """Print the table; 1 where our interval lies above 0 too often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = np.random.default_rng(args.seed)
    print(f"{'prompts':>7} {'dialogues of':>12} {'correlation':>11} {'independent':>11} {'ours':>5}")
    worst = 0.0
    for n in PROMPTS:
        for kind in DIALOGUES:
            for correlation in CORRELATIONS:
                if kind == "one" and correlation:
                    continue
                independent, ours = passes(n, kind, correlation, args.draws, generator)
                worst = max(worst, ours)
                print(f"{n:>7} {kind:>12} {correlation:>11} {independent:>11.1f} {ours:>5.1f}", flush=True)
    print(f"worst {worst:.1f} of a hundred (limit {MOST_PER_CENT})")
    return int(worst > MOST_PER_CENT)


def passes(n: int, kind: str, correlation: float, draws: int, generator: np.random.Generator) -> tuple[float, float]:
    """In how many of a hundred draws the interval lies above 0: of independent prompts, and by dialogues."""
    passed = np.zeros(2)
    for _ in range(draws):
        sizes = dialogue_sizes(kind, n, generator)
        dialogues = np.repeat(np.arange(len(sizes)), sizes)
        shared = generator.normal(size=len(sizes))[dialogues]
        gains = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * generator.normal(size=n)
        values = gains.tolist()
        for place, clusters in enumerate((None, dialogues.tolist())):
            passed[place] += mean_interval(values, clusters=clusters)[1] > 0
    independent, ours = 100 * passed / draws
    return float(independent), float(ours)


if __name__ == "__main__":
    sys.exit(main())
