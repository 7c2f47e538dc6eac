"""What a preference model costs with 1,000, 10,000 and 100,000 comparisons: CPU time and memory of its training job.

    python -m benchmarks.preference_model_scaling [--comparisons 1000,10000,100000] [--max-steps 320]

A tiny model (hidden 32, 2 layers), so that what is measured is everything around it: digests, tokenising, keeping and
reading pairs, order of the epoch, batches. Every set is loaded whole; of the training at most `--max-steps` steps of 32
pairs are run, and their cost per pair counts. Each set is a
process of its own, one thread, CPU seconds. Exits with 1 where a comparison costs over 1.3 times what it costs in the
smallest set, or where memory grows by more than 200 bytes a comparison (its ids alone are about 900).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForSequenceClassification
from transformers.utils import logging as transformers_logging

from benchmarks.memory import Memory
from benchmarks.preference_model_speed import PROMPT, REPLY, _drawn
from benchmarks.speed_world import Clock, Size, word_tokenizer
from models.chat.format import ChatFormat
from models.chat.tokenizer import write_chat_files
from models.jobs.train_preference_model import _load
from models.preference.settings import PreferenceModelSettings
from models.preference.training import Training
from models.runtime.job import Job

ROOT = Path(__file__).resolve().parent.parent
SIZE = Size(hidden=32, layers=2, heads=2, intermediate=64)
MAX_COST = 1.3  # of a comparison in the smallest set
MAX_BYTES = 200  # a comparison


def write_set(directory: Path, count: int) -> None:
    """A comparison set of one shard with lengths as in HH, written line by line; every 20th is held out."""
    generator = random.Random(0)
    words = [f"w{i}" for i in range(1000)]

    def text(lengths: tuple[int, ...]) -> str:
        return " ".join(generator.choices(words, k=_drawn(lengths, generator.random())))

    (directory / "shards").mkdir(parents=True)
    digest = hashlib.sha256()
    with (directory / "shards" / "00000.jsonl").open("wb") as file:
        for number in range(count):
            record = {
                "id": f"c{number}",
                "split": "train" if number % 20 else "held_out",
                "source": "hh",
                "question": "helpful",
                "split_key": hashlib.sha256(str(number // 4).encode()).hexdigest(),
                "prompt": [{"role": "user", "content": text(PROMPT)}],
                "better": [{"role": "assistant", "content": text(REPLY)}],
                "worse": [{"role": "assistant", "content": text(REPLY)}],
            }
            line = json.dumps(record).encode() + b"\n"
            digest.update(line)
            file.write(line)
    shard = {"file": "shards/00000.jsonl", "sha256": digest.hexdigest(), "records": count}
    (directory / "manifest.json").write_text(json.dumps({"format": 1, "shards": [shard]}), encoding="utf-8")


def measure(folder: Path, max_steps: int) -> dict[str, Any]:
    """Load the set in `folder`, train the first steps on it; run in a process of its own."""
    chat = write_chat_files(word_tokenizer(SIZE.vocabulary), folder / "initial")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(SIZE.config(num_labels=1, pad_token_id=chat.pad_id))
    inputs = {"comparisons": str(folder / "set")}
    job = Job({"settings": {}, "device": "cpu", "inputs": inputs}, folder)
    settings = PreferenceModelSettings()
    memory = Memory()
    memory.begin()
    clock = Clock(job.device)
    splits, *_ = _load(job, ChatFormat.load(folder / "initial"), settings.max_tokens, settings)
    pairs = splits["train"].pairs
    load_s = clock.seconds()
    clock = Clock(job.device)
    training = Training(job, settings, model.train(), chat, pairs)
    training._batch(0)  # makes the order of the epoch
    begin_s = clock.seconds()
    steps = min(max_steps, training.steps_per_epoch)
    clock = Clock(job.device)
    for step in range(steps):
        training._step(step, training._batch(step))
    trained = min(steps * settings.batch_pairs, len(pairs))
    return {
        "load_s": load_s,
        "begin_s": begin_s,
        "train_s_per_pair": clock.seconds() / trained,
        "steps": steps,
        "pairs": len(pairs),
        "peak_mb": memory.peak_mb(),
    }


def main() -> int:
    """Measure every size; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", default="1000,10000,100000")
    parser.add_argument("--max-steps", type=int, default=320)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    if args.measure is not None:
        print(json.dumps(measure(args.measure, args.max_steps)))
        return 0
    print("comparisons   load ms each   begin ms each   train ms each (steps)   peak MB")
    rows = []
    for count in map(int, args.comparisons.split(",")):
        with tempfile.TemporaryDirectory() as name:
            write_set(Path(name) / "set", count)
            command = [sys.executable, "-m", __spec__.name, "--measure", name, "--max-steps", str(args.max_steps)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        each = [1e3 * result["load_s"] / count, 1e3 * result["begin_s"] / count, 1e3 * result["train_s_per_pair"]]
        rows.append((count, sum(each), result["peak_mb"]))
        print(f"{count:11,} {each[0]:14.3f} {each[1]:15.4f} {each[2]:15.3f} ({result['steps']})", end="")
        print(f"{result['peak_mb']:14.0f}", flush=True)
    first, last = rows[0], rows[-1]
    cost = last[1] / first[1]
    growth = (last[2] - first[2]) * 2**20 / max(1, last[0] - first[0])
    met = cost <= MAX_COST and growth <= MAX_BYTES
    print(f"a comparison costs {cost:.2f} times what it costs among {first[0]:,} (target {MAX_COST:g}); ", end="")
    print(f"memory grows by {growth:.0f} bytes a comparison (target {MAX_BYTES}){'' if met else '  MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
