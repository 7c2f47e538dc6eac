"""The demo made small enough for a test."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SETTINGS = (
    "world.num_dialogues=2000",
    "world.num_evaluation=30",
    "raters.comparisons_per_cycle=80",
    "raters.evaluation_comparisons=40",
    "cycle.min_comparisons=80",
    "ppo.iterations=2",
    "evaluation.num_prompts=30",
    "evaluation.best_of=2",
    "evaluation.best_of_points=[1, 2]",
    # No orientation check: at 80 comparisons a preference model may well be the wrong way round.
    "raters.taste=random",
)
ONE_SMALL_CYCLE = ("--cycles", "1", *(word for setting in SETTINGS for word in ("--set", setting)))


def demo(
    program: Sequence[str],
    out: Path,
    words: Sequence[str],
    environment: Mapping[str, str],
    *,
    cwd: Path | None = None,
    timeout_s: float = 600,
) -> subprocess.CompletedProcess[str]:
    """`demo --exit` to its end, with its report in `out`."""
    return subprocess.run(
        [*program, "demo", "--exit", "--out", str(out), *words],
        env=dict(environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
