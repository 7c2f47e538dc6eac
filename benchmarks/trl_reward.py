"""The TRL side of benchmarks/preference_model_speed.py; runs in TRL's own environment and prints one line of JSON.

    python benchmarks/trl_reward.py MODEL PAIRS --batch 32 --micro 4 [--rounds 3] [--bf16] [--device cuda]

`PAIRS` is JSON Lines of chosen_ids and rejected_ids in the order of training. Activation checkpointing, which TRL turns
on by default, is off. The same epoch is run `--rounds` times; of every step the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from memory import Memory  # beside this file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback
from trl import RewardConfig, RewardTrainer


class StepTimes(TrainerCallback):
    """Seconds of every optimiser step: of the CPU, or on a GPU of the wall."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.memory = Memory(self.gpu)
        self.seconds: list[float] = []

    def now(self) -> float:
        if self.gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.memory.begin()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = self.now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(self.now() - self.began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--batch", type=int, required=True, help="pairs in an optimiser step")
    parser.add_argument("--micro", type=int, required=True, help="pairs in a forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in args.pairs.read_text(encoding="utf-8").splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1, dtype=torch.float32)
    times = StepTimes(device)
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=args.micro,
            gradient_accumulation_steps=args.batch // args.micro,
            num_train_epochs=args.rounds,
            bf16=args.bf16,
            gradient_checkpointing=False,
            max_length=None,
            train_sampling_strategy="sequential",
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type != "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=10_000,
        )
        trainer = RewardTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict(
                {key: [row[key] for row in rows] for key in ("chosen_ids", "rejected_ids")}
            ),
            processing_class=PreTrainedTokenizerFast.from_pretrained(args.model),
            callbacks=[times],
        )
        trainer.train()
    print(json.dumps({"seconds": times.seconds, "peak_mb": times.memory.peak_mb()}))


if __name__ == "__main__":
    main()
