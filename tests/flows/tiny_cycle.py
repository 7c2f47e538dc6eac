"""A tiny cycle for the flow tests: an initial policy of a few thousand weights, and comparisons for a polite reply."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.paths import PROJECT_ROOT

MIN_COMPARISONS = 40
Orchestrator = Callable[..., str]
CONFIG = f"""
name = "tiny"
[initial_policy.pretrain]
files = ["dialogues.jsonl"]
hidden_size = 32
num_layers = 1
num_heads = 2
vocab_size = 320
max_tokens = 96
batch_tokens = 512
epochs = 1
[cycle]
min_comparisons = {MIN_COMPARISONS}
[comparisons]
held_out_fraction = 0.3
[preference_model]
batch_pairs = 4
max_tokens = 96
[ppo]
iterations = 6
prompts_per_iteration = 8
minibatch_replies = 8
max_reply_tokens = 8
epochs = 1
[evaluation]
num_prompts = 8
max_reply_tokens = 8
best_of = 1
[orientation]
shipped = false
[schedule]
cron = "30 5 * * 2"
timezone = "Europe/Berlin"
"""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def question(number: int) -> str:
    """The opening message of dialogue `number`; no two are equal, so each is a dialogue of its own."""
    return (
        f"Dear friend, what comes after {NUMBERS[number % 10]} and before {NUMBERS[number // 10 % 10]}, case {number}?"
    )


def write_comparisons(path: Path, start: int, count: int) -> Path:
    """hh-rlhf records in which the polite reply was chosen."""
    with path.open("w") as file:
        for number in range(start, start + count):
            asked = f"\n\nHuman: {question(number)}\n\nAssistant:"
            polite, rude = f"{asked} Thank you for asking: {number}.", f"{asked} No idea, go away {number}."
            file.write(json.dumps({"chosen": polite, "rejected": rude}) + "\n")
    return path


def start_command(home: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """An `orchestrator` command as from another terminal, which knows the home alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DATABASE_"))}
    # A clock that is set (test_schedule.py) stands there too.
    paths = os.pathsep.join([str(PROJECT_ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=kept | {"ORCHESTRATOR_HOME": str(home), "PYTHONPATH": paths} | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_command(home: Path, *words: str, status: int = 0, **env: str) -> str:
    """What the command prints; the test fails where its exit status is another."""
    process = start_command(home, *words, **env)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == status, printed
    return printed


def begin(orchestrator: Orchestrator, config: Path, folder: Path, seed: int) -> int:
    """Bring in enough fresh comparisons for another cycle; returns the number it will have."""
    cycles = json.loads(orchestrator("cycle", "list", "--json"))
    for cycle in cycles:
        # What a failed test left open is not this one's.
        if cycle["state"] == "open":
            orchestrator("cycle", "cancel", str(cycle["cycle"]))
    if not cycles:
        orchestrator("cycle", "run", "--config", str(config))
    file = write_comparisons(folder / "more.jsonl", 1000 * seed, 50)
    orchestrator("import", "--question", "helpful", "--source", "tiny", str(file))
    return next_number(orchestrator)


def next_number(orchestrator: Orchestrator) -> int:
    """The number of the next cycle that learns; an instance whose first cycle had comparisons has no week 0."""
    return max((cycle["cycle"] for cycle in json.loads(orchestrator("cycle", "list", "--json"))), default=0) + 1
