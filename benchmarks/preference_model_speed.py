"""Our preference model trainer against TRL's RewardTrainer: pairs per second at equal work, and peak memory.

    python -m benchmarks.preference_model_speed [--rows single,tree] [--steps 2] [--rounds 5] [--device cuda]

Both sides get the same model (Llama, random weights), the same pairs in the same optimiser batches of 32, one thread;
each is a process of its own. TRL runs without activation checkpointing and in the fastest of several sizes of forward
pass (fewer pairs at a time pad less); its plain setting, all pairs of a batch at once, stands beside it. Time is CPU
seconds, of every step the fastest of `--rounds`; memory is the highest resident memory above what the process held
before training, TRL's in its fastest setting. bf16 rows need AMX or a GPU, else they are not run. Exits with 1 where
a target is missed.

Lengths are drawn from those of `hh_harmless_base` (1,281 comparisons of dialogues of 5 messages on average) at four
characters a token. A tree is a dialogue whose four turns were all compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForSequenceClassification
from transformers.utils import logging as transformers_logging

from benchmarks.baseline_venv import TRL_REWARD, baseline_python
from benchmarks.memory import Memory
from benchmarks.speed_world import Clock, Size, has_amx, measured_peaks, word_tokenizer
from models.chat.format import ChatFormat
from models.chat.tokenizer import write_chat_files
from models.preference.comparison_set import common_prefix_length
from models.preference.order import dialogue_order, epoch_order
from models.preference.pairs import TokenPair
from models.preference.settings import PreferenceModelSettings
from models.preference.training import Training
from models.runtime.job import Job

ROOT = Path(__file__).resolve().parent.parent
BATCH = 32
MAX_MEMORY = 0.4  # of TRL's

# Tokens at these shares of the comparisons: prompts with all turns before the reply, replies, a user's single message.
SHARES = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1)
PROMPT = (8, 13, 16, 31, 90, 165, 269, 362, 700)
REPLY = (2, 6, 8, 16, 32, 62, 108, 141, 400)
MESSAGE = (3, 5, 6, 10, 18, 32, 55, 75, 150)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    turns: int
    target: float
    bf16: bool = False


ROWS = {
    "single": Row("single pairs, fp32", 1, 3.0),
    "tree": Row("dialogues of 4 compared turns, fp32", 4, 5.0),
    "single-bf16": Row("single pairs, bf16", 1, 3.0, bf16=True),
    "tree-bf16": Row("dialogues of 4 compared turns, bf16", 4, 5.0, bf16=True),
}


def make_pairs(count: int, turns: int, vocabulary: int, score_id: int, seed: int = 0) -> list[TokenPair]:
    """Comparisons with lengths as in HH: each of its own dialogue, or `turns` of one dialogue after the other."""
    generator = random.Random(seed)

    def ids(lengths: tuple[int, ...]) -> list[int]:
        return [generator.randrange(8, vocabulary) for _ in range(_drawn(lengths, generator.random()))]

    pairs = []
    path: list[int] = []
    for number in range(count):
        path = ids(PROMPT) if turns == 1 else [*(path if number % turns else []), *ids(MESSAGE)]
        better, worse = ids(REPLY), ids(REPLY)
        sides = [*path, *better, score_id], [*path, *worse, score_id]
        shared = common_prefix_length(sides[0][:-1], sides[1][:-1])
        parts = (array("i", part) for part in (sides[0][:shared], sides[0][shared:], sides[1][shared:]))
        pairs.append(TokenPair(str(number), "hh", "helpful", *parts, dialogue=number // turns))
        path = path + better
    return pairs


def _drawn(lengths: tuple[int, ...], share: float) -> int:
    """The length at a share of the comparisons, straight between the given ones."""
    upper = next(i for i in range(1, len(SHARES)) if share <= SHARES[i])
    within = (share - SHARES[upper - 1]) / (SHARES[upper] - SHARES[upper - 1])
    return round(lengths[upper - 1] + within * (lengths[upper] - lengths[upper - 1]))


def train_ours(folder: Path, row: Row, steps: int, rounds: int, device: str) -> dict[str, Any]:
    """Seconds of every step of every round, peak memory, tokens computed; run in a process of its own."""
    chat = ChatFormat.load(folder)
    size = Size()
    pairs = make_pairs(steps * BATCH, row.turns, size.vocabulary, chat.score_id)
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    job = Job({"settings": {}, "device": device}, folder / "out")
    job.prepare_process()
    settings = PreferenceModelSettings(
        batch_pairs=BATCH,
        epochs=rounds,
        batch_order=_order(row),
        learning_rate=1e-4,
        precision="bfloat16" if row.bf16 else "float32",
    )
    training = Training(job, settings, model.to(job.device).train(), chat, pairs)
    memory = Memory(job.device.type == "cuda")
    memory.begin()
    seconds = []
    for step in range(steps * rounds):
        # Every round is the first epoch again, so that its steps can be compared.
        batch = training._batch(step % steps)
        clock = Clock(job.device)
        training._step(step, batch)
        seconds.append(clock.seconds())
    peak_mb = memory.peak_mb()
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    return {
        "seconds": seconds,
        "peak_mb": peak_mb,
        "tokens": training.tokens_computed / rounds,
        "flops": 6 * matrices * training.tokens_computed / rounds,
    }


def _order(row: Row) -> Any:
    return "dialogues" if row.turns > 1 else "pairs"


def write_inputs(folder: Path, row: Row, steps: int) -> None:
    """The model, and for TRL the pairs in the order of our training."""
    size = Size()
    chat = write_chat_files(word_tokenizer(size.vocabulary), folder)
    torch.manual_seed(0)
    config = size.config(num_labels=1, pad_token_id=chat.pad_id, eos_token_id=chat.eos_id, bos_token_id=None)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    (folder / "out").mkdir()
    pairs = make_pairs(steps * BATCH, row.turns, size.vocabulary, chat.score_id)
    in_dialogues = _order(row) == "dialogues"
    order = dialogue_order([p.dialogue for p in pairs], 0, 0) if in_dialogues else epoch_order(len(pairs), 0, 0)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for pair in (pairs[i] for i in order):
            sides = {"chosen_ids": pair.better_ids, "rejected_ids": pair.worse_ids}
            file.write(json.dumps({name: [*pair.prefix_ids, *ids] for name, ids in sides.items()}) + "\n")


def run_process(command: list[str]) -> dict[str, Any]:
    """The JSON object that a process prints as its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stderr[-2000:]}\nerror: {' '.join(command)} ended with {done.returncode}.")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def best(seconds: list[float], steps: int) -> float:
    """Seconds of an epoch made of the fastest run of each of its steps."""
    return sum(min(seconds[step::steps]) for step in range(steps))


def measure(key: str, args: argparse.Namespace) -> bool:
    """Print one row; whether its targets were met."""
    row = ROWS[key]
    judged = not row.bf16 or args.device != "cpu" or has_amx()
    if not judged and not args.bf16_anyway:
        print(f"{row.name}: not run, this CPU has no AMX (--bf16-anyway runs it)")
        return True
    steps, rounds = args.steps, args.rounds
    pairs = steps * BATCH
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, row, steps)
        numbers = ["--steps", str(steps), "--rounds", str(rounds), "--device", args.device]
        ours = run_process([sys.executable, "-m", __spec__.name, "--ours", str(folder), "--rows", key, *numbers])
        trl_side = [str(baseline_python(TRL_REWARD)), str(ROOT / "benchmarks" / "trl_reward.py"), str(folder)]
        trl_side += [str(folder / "pairs.jsonl"), "--batch", str(BATCH), "--device", args.device]
        trl_side += ["--bf16"] if row.bf16 else []
        trl = {
            micro: run_process([*trl_side, "--micro", str(micro), "--rounds", str(rounds)])
            for micro in map(int, args.trl_pairs_at_once.split(","))
        }
    ours_s = best(ours["seconds"], steps)
    trl_s = {micro: best(result["seconds"], steps) for micro, result in trl.items()}
    fastest = min(trl_s, key=lambda micro: trl_s[micro])
    ratio, memory = trl_s[fastest] / ours_s, ours["peak_mb"] / trl[fastest]["peak_mb"]
    met = ratio >= row.target and memory <= MAX_MEMORY
    peak = measured_peaks(torch.device(args.device), torch.bfloat16 if row.bf16 else torch.float32).flops
    print(f"{row.name}: {pairs} pairs, {ours['tokens'] / pairs:.0f} tokens computed a pair")
    print(f"  {'ours':16} {pairs / ours_s:8.1f} pairs/s {ours['peak_mb']:8.0f} MB")
    for micro, seconds in trl_s.items():
        print(f"  {f'TRL, {micro} at once':16} {pairs / seconds:8.1f} pairs/s {trl[micro]['peak_mb']:8.0f} MB")
    print(f"  ours: {ours['tokens'] / ours_s:,.0f} tokens/s, MFU {ours['flops'] / ours_s / peak:.0%}", end=" ")
    print(f"of the {peak / 1e9:,.0f} GFLOP/s that one large product reaches here")
    told = ("" if met else "  MISSED") if judged else ", no target without AMX"
    print(f"  {ratio:.2f}x TRL's fastest (target {row.target:g}x), ", end="")
    print(f"memory {memory:.0%} of its (target {MAX_MEMORY:.0%}){told}", flush=True)
    return met or not judged


def main() -> int:
    """Measure every row; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--bf16-anyway", action="store_true", help="run bf16 rows also on a CPU without AMX, where they have no target"
    )
    parser.add_argument("--steps", type=int, default=2, help=f"optimiser steps of {BATCH} pairs in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trl-pairs-at-once", default="32,8,4,2", help="TRL's sizes of a forward pass to choose from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    if args.ours is not None:
        print(json.dumps(train_ours(args.ours, ROWS[args.rows], args.steps, args.rounds, args.device)))
        return 0
    met = [measure(key, args) for key in args.rows.split(",")]  # every row, also after one that missed
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
