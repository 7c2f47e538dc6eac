"""What it costs in accuracy that comparisons of one dialogue share a batch (`batch_order = "dialogues"`).

    python -m benchmarks.batch_order [--comparisons 600,2400] [--seeds 4]

Dialogues of the small world with four compared turns, each judged by one synthetic rater who is right three times of
four; preference models start from one policy pretrained on the world, with the demo's settings. Every seed draws other
dialogues and trains twice on them, once in each order. Accuracy is on 1,200 further comparisons labelled by the truth,
with Student's interval for the mean difference of the pairs of runs. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from models.chat import dialogue_files
from models.jobs import pretrain, train_preference_model
from models.runtime.job import Job
from models.statistics.intervals import mean_interval
from orchestrator.world.raters import SyntheticRater
from orchestrator.world.replies import draw_reply
from orchestrator.world.requests import Kind, draw_request
from orchestrator.world.settings import WorldSection
from orchestrator.world.world import HARMFUL_SHARE, World

TURNS = 4
HELD_OUT = 1200
AGREEMENT = 0.75
ORDERS = ("pairs", "dialogues")
SETTINGS: dict[str, Any] = {"learning_rate": 5e-4, "batch_pairs": 16, "epochs": 2}  # of examples/demo.toml
PRETRAIN: dict[str, Any] = {"vocab_size": 1024, "batch_tokens": 1024, "learning_rate": 3e-3}


def main() -> None:
    """Print accuracy and speed of both orders for every number of comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", default="600,2400")
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        initial = _initial_policy(home)
        print(
            "| comparisons | accuracy, pairs | dialogues | difference [95 %] | comparisons/CPU s, pairs | dialogues |"
        )
        print("|---:|---:|---:|---:|---:|---:|")
        for count in map(int, args.comparisons.split(",")):
            runs = [[_train(home, initial, count, seed, order) for order in ORDERS] for seed in range(args.seeds)]
            accuracy, speed = np.array(runs).transpose(2, 1, 0)
            mean, low, high = mean_interval(list(accuracy[1] - accuracy[0]))
            print(f"| {count:,} | {accuracy[0].mean():.3f} | {accuracy[1].mean():.3f} ", end="")
            print(f"| {mean:+.3f} [{low:+.3f}, {high:+.3f}] ", end="")
            print(f"| {speed[0].max():.0f} | {speed[1].max():.0f} |", flush=True)


def _initial_policy(home: Path) -> Path:
    (home / "text").mkdir()
    with (home / "text" / dialogue_files.DIALOGUES_FILE).open("w", encoding="utf-8") as file:
        for dialogue in World(0).dialogues(WorldSection().num_dialogues):
            file.write(json.dumps({"messages": dialogue}) + "\n")
    out = home / "initial"
    out.mkdir()
    pretrain.run(Job({"inputs": {"text": str(home / "text")}, "settings": PRETRAIN, "device": "cpu"}, out))
    return out / "result"


def _train(home: Path, initial: Path, count: int, seed: int, order: str) -> tuple[float, float]:
    """Held-out accuracy, and comparisons a CPU second of the whole job."""
    data = home / f"set-{count}-{seed}"
    if not data.exists():
        _write_set(data, count, seed)
    spec = {
        "inputs": {"initial": str(initial), "comparisons": str(data)},
        "settings": {**SETTINGS, "batch_order": order},
        "seed": seed,
        "device": "cpu",
    }
    out = home / f"{count}-{seed}-{order}"
    out.mkdir()
    started = time.process_time()
    train_preference_model.run(Job(spec, out))
    seconds = time.process_time() - started
    results = json.loads((out / "result" / "results.json").read_text())
    return results["held_out"]["accuracy"], count * SETTINGS["epochs"] / seconds


def _write_set(folder: Path, count: int, seed: int) -> None:
    rng = random.Random(f"batch order/{seed}")
    records = [*_records(rng, count, "train", AGREEMENT), *_records(rng, HELD_OUT, "held_out", agreement=1.0)]
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "00000.jsonl").write_bytes(data)
    shard = {"file": "shards/00000.jsonl", "sha256": hashlib.sha256(data).hexdigest(), "records": len(records)}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "shards": [shard]}), encoding="utf-8")


def _records(rng: random.Random, count: int, split: str, agreement: float) -> list[dict[str, Any]]:
    """Comparisons of dialogues of four turns that go on with the picked reply; ties of the truth are left out."""
    records: list[dict[str, Any]] = []
    number = 0
    while len(records) < count:
        number += 1
        kind: Kind = "harmless" if rng.random() < HARMFUL_SHARE else "helpful"
        rater = SyntheticRater("truth", agreement, str(rng.random()), spread=0.0)
        messages: list[dict[str, str]] = []
        turn = 0
        while turn < TURNS and len(records) < count:
            request = draw_request(rng, kind)
            replies = [draw_reply(rng, request) for _ in range(2)]
            answer = rater.compare(kind, request.text, *replies)
            if answer.side == "none" or replies[0] == replies[1]:
                continue
            better, worse = replies if answer.side == "a" else replies[::-1]
            turn += 1
            prompt = [*messages, {"role": "user", "content": request.text}]
            records.append(
                {
                    "id": f"{split}-{len(records):05}",
                    "split": split,
                    "source": "world",
                    "tranche": "base",
                    "question": kind,
                    "strength": answer.strength,
                    "rater": f"r{number % 24}",
                    "turn": turn,
                    "split_key": f"{split}-{number}",
                    "prompt": prompt,
                    "better": [{"role": "assistant", "content": better}],
                    "worse": [{"role": "assistant", "content": worse}],
                }
            )
            messages = [*prompt, {"role": "assistant", "content": better}]
    return records


if __name__ == "__main__":
    main()
