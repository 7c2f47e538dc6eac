"""How often the 95 % interval of an accuracy holds the true one, where comparisons of a dialogue depend on each other.

    python -m benchmarks.accuracy_intervals [--draws 600] [--seed 0]

Dialogues of one comparison, of four, of uneven numbers (geometric, mean 3.3), of ten, and nine of one for each of ten;
20 to 2,000 comparisons, accuracies 0.5 to 0.95. Outcomes within a dialogue are beta-binomial with the correlation
named. Printed for each number of comparisons and each correlation: the mean and the worst coverage over dialogues and
accuracies, and the mean width, of Wilson's interval, of a percentile bootstrap of dialogues, and of ours. Status 1
where ours falls below a floor: 0.94 on the mean of any row, 0.90 anywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.preference.curves import accuracy_of
from models.statistics.intervals import wilson

COMPARISONS = (20, 60, 200, 600, 2000)
ACCURACIES = (0.5, 0.65, 0.8, 0.95)
CORRELATIONS = (0.0, 0.1, 0.3, 0.9)
DIALOGUES = ("one", "four", "uneven", "ten", "one or ten")
RESAMPLES = 200
MEAN_FLOOR, WORST_FLOOR = 0.94, 0.90


@dataclass
class Row:
    """Coverage and widths of one method, a number for each kind of dialogues and accuracy."""

    coverage: list[float] = field(default_factory=list)
    width: list[float] = field(default_factory=list)


def main() -> int:
    """Print the table; 1 where our interval holds too seldom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=600, help="draws for each cell of the table's means")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = np.random.default_rng(args.seed)
    methods = ("Wilson", "bootstrap", "ours")
    print(f"{'comparisons':>11} {'correlation':>11}", *(f"{name:>23}" for name in methods))
    print(f"{'':23}", *(f"{'mean worst width':>23}" for _ in methods))
    low = False
    for n in COMPARISONS:
        for correlation in CORRELATIONS:
            rows = {name: Row() for name in methods}
            for kind in DIALOGUES:
                for accuracy in ACCURACIES:
                    # Dialogues of one comparison know no correlation.
                    if kind != "one" or correlation == 0:
                        cell(rows, n, kind, accuracy, correlation, args.draws, generator)
            shown = (
                f"{np.mean(row.coverage):>11.3f} {min(row.coverage):.3f} {np.mean(row.width):.3f}"
                for row in rows.values()
            )
            print(f"{n:>11} {correlation:>11}", *shown, flush=True)
            ours = rows["ours"].coverage
            low |= float(np.mean(ours)) < MEAN_FLOOR or min(ours) < WORST_FLOOR
    return int(low)


def cell(
    rows: dict[str, Row],
    n: int,
    kind: str,
    accuracy: float,
    correlation: float,
    draws: int,
    generator: np.random.Generator,
) -> None:
    """Draw outcomes again and again, and add each method's coverage and mean width."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for _ in range(draws):
        sizes = dialogue_sizes(kind, n, generator)
        right = outcomes(sizes, accuracy, correlation, generator)
        flat = [1.0 if place < wins else 0.0 for size, wins in zip(sizes, right, strict=True) for place in range(size)]
        dialogues = [number for number, size in enumerate(sizes) for _ in range(size)]
        found["Wilson"].append(wilson(sum(flat), n))
        found["bootstrap"].append(bootstrap(np.array(sizes), np.array(right), generator))
        found["ours"].append(accuracy_of(flat, dialogues).ci)
    for name, intervals in found.items():
        rows[name].coverage.append(float(np.mean([low <= accuracy <= high for low, high in intervals])))
        rows[name].width.append(float(np.mean([high - low for low, high in intervals])))


def dialogue_sizes(kind: str, n: int, generator: np.random.Generator) -> list[int]:
    """Numbers of comparisons of dialogues that hold `n` together; the last is cut."""
    sizes: list[int] = []
    left = n
    while left:
        size = {
            "one": 1,
            "four": 4,
            "uneven": int(generator.geometric(0.3)),
            "ten": 10,
            "one or ten": 10 if generator.random() < 0.1 else 1,
        }[kind]
        sizes.append(min(size, left))
        left -= sizes[-1]
    return sizes


def outcomes(
    sizes: Sequence[int], accuracy: float, correlation: float, generator: np.random.Generator
) -> Sequence[int]:
    """How many comparisons of each dialogue are ordered rightly."""
    if correlation == 0:
        return [int(x) for x in generator.binomial(sizes, accuracy)]
    scale = (1 - correlation) / correlation
    shares = generator.beta(accuracy * scale, (1 - accuracy) * scale, len(sizes))
    return [int(x) for x in generator.binomial(sizes, shares)]


def bootstrap(sizes: np.ndarray, right: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """Percentile interval of the accuracy when dialogues are drawn again."""
    drawn = generator.integers(0, len(sizes), (RESAMPLES, len(sizes)))
    shares = right[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    sys.exit(main())
