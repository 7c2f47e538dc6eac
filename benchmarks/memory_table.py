"""The memory table of `orchestrator doctor` held against measured peaks, for models from 60 million parameters on.

    python -m benchmarks.memory_table [--only CASE...] [--docs docs]

Each job runs whole, from loading to publishing, as the process that a stage starts, with one thread of a CPU. Measured
is the highest of its resident memory (looked at every 20 ms) above that of a process that has imported as much; weights
that are read from a file in place are part of it.
Ends with 1 where the table lies further from it than its tolerance. The numbers go to
docs/explanation/results/memory_table.json with the hardware they were measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from benchmarks.real_text import hardware
from models.chat.format import ChatFormat
from models.memory.needs import (
    Needs,
    config_of,
    judges_of,
    needs_of_evaluation,
    needs_of_policy,
    needs_of_preference_model,
)
from models.memory.passes import apart
from models.memory.room import TOLERANCE, gib
from models.policy.settings import EvaluationSettings, PPOSettings
from models.preference.settings import PreferenceModelSettings
from tests.models.preference_world import polite_comparisons, write_comparison_set
from tests.models.tiny_folders import CHATML, byte_level_bpe

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "hidden_size": 768,
    "num_hidden_layers": 10,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 2048,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
WORDS = ("one", "two", "three", "numbers", "Paris", "France")
PM = {"batch_pairs": 24, "checkpoint_every": 1, "checkpoint_time_share": 1.0}
PPO = {
    "iterations": 3,
    "prompts_per_iteration": 24,
    "minibatch_replies": 12,
    "epochs": 1,
    "max_reply_tokens": 64,
    "learning_rate": 1e-7,
    "checkpoint_every": 1,
    "checkpoint_time_share": 1.0,
}
EVALUATION = {"num_prompts": 32, "max_reply_tokens": 64}


@dataclass(frozen=True)
class Case:
    """One job of one family of models."""

    family: str
    job: str
    settings: dict[str, Any]


CASES = {
    "preference model": Case("llama", "train_preference_model", PM),
    "preference model, recomputed": Case("llama", "train_preference_model", PM | {"recompute_activations": True}),
    "preference model, Qwen3": Case("qwen3", "train_preference_model", PM),
    "preference model, Gemma 3": Case("gemma3_text", "train_preference_model", PM),
    "PPO": Case("llama", "train_policy", PPO),
    "PPO, critic of its own": Case("llama", "train_policy", PPO | {"critic": "separate"}),
    "PPO, adapters": Case("llama", "train_policy", PPO | {"lora_rank": 8}),
    "PPO, Qwen3": Case("qwen3", "train_policy", PPO),
    "evaluation": Case("llama", "evaluate", EVALUATION),
}


class World:
    """Models, comparisons and prompts in one folder; each is made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder of that name."""
        path = self.folder / name
        if not path.exists():
            make(path)
        return path

    def initial(self, family: str) -> Path:
        """A prepared initial policy with random weights."""

        def publish(path: Path) -> None:
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE)).save_pretrained(path)
            special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=byte_level_bpe(special), eos_token="<|im_end|>", pad_token="<|endoftext|>"
            )
            tokenizer.chat_template = CHATML
            tokenizer.save_pretrained(path)

        source = self.once(f"{family}-source", publish)
        return self._made(f"{family}-initial", "prepare_policy", {"source": source}, {})

    def comparisons(self) -> Path:
        """Comparisons whose replies have some 130 tokens and all the same words, so that none is much longer."""

        def write(path: Path) -> None:
            draw, records = random.Random(1), polite_comparisons(72, 8)
            for record in records:
                record["prompt"][0]["content"] = "Please tell me " + " ".join(WORDS)
                for side in ("better", "worse"):
                    record[side][0]["content"] = " ".join(draw.sample(10 * WORDS, 10 * len(WORDS)))
            write_comparison_set(path, records)

        return self.once("comparisons", write)

    def prompts(self) -> Path:
        """Prompts of one length."""

        def write(path: Path) -> None:
            path.mkdir()
            draw = random.Random(2)
            lines = [
                {
                    "id": f"{number:03}",
                    "kind": "helpful",
                    "split": split,
                    "messages": [{"role": "user", "content": " ".join(draw.choice(WORDS) for _ in range(20))}],
                }
                for split in ("train", "held_out")
                for number in range(80)
            ]
            (path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

        return self.once("prompts", write)

    def inputs(self, case: Case) -> dict[str, Path]:
        """What a job is given."""
        initial = self.initial(case.family)
        if case.job == "train_preference_model":
            return {"initial": initial, "comparisons": self.comparisons()}
        lora = {"lora_rank": case.settings["lora_rank"]} if "lora_rank" in case.settings else {}
        given = {"initial": initial, "comparisons": self.comparisons()}
        name = f"{case.family}-scorer{'-adapters' if lora else ''}"
        scorer = self._made(name, "train_preference_model", given, {"batch_pairs": 24} | lora)
        found = {"initial": initial, "preference_model": scorer, "prompts": self.prompts()}
        return found | ({"policy": initial} if case.job == "evaluate" else {})

    def _made(self, name: str, job: str, inputs: dict[str, Path], settings: dict[str, Any]) -> Path:
        return self.once(name, lambda path: measured(path, job, inputs, settings) and None) / "result"


def measured(out: Path, job: str, inputs: dict[str, Path], settings: dict[str, Any]) -> int:
    """Run a job; the most of its own memory, in bytes, above a process that has imported as much."""
    out.mkdir(parents=True)
    given = {role: str(folder) for role, folder in inputs.items()}
    spec = {"job": job, "inputs": given, "settings": settings, "seed": 0, "threads": 1, "device": "cpu"}
    (out / "spec.json").write_text(json.dumps(spec))
    module = f"models.jobs.{job}"
    imported = f"import {module}; print(open('/proc/self/status').read())"
    base = _resident(subprocess.run([sys.executable, "-c", imported], cwd=ROOT, capture_output=True, text=True).stdout)
    command = [sys.executable, "-m", module, "--spec", str(out / "spec.json"), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    peak = 0
    with (out / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, _resident(Path(f"/proc/{process.pid}/status").read_text()))
            time.sleep(0.02)
    if process.returncode != 0:
        sys.exit(f"{(out / 'log').read_text()[-2000:]}\nerror: {job} ended with {process.returncode}.")
    return peak - base


def _resident(status: str) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    # A process that ends has none any more.
    return 0 if found is None else 1024 * int(found[1])


def reckoned(case: Case, inputs: dict[str, Path]) -> Needs:
    """The table that the job reckons."""
    config, chat = config_of(inputs["initial"]), ChatFormat.load(inputs["initial"])
    if case.job == "train_preference_model":
        settings = PreferenceModelSettings(**case.settings)
        lines = (inputs["comparisons"] / "shards" / "00000.jsonl").read_text().splitlines()
        sides = [(record, side) for record in map(json.loads, lines) for side in ("better", "worse")]
        longest = max(len(chat.score_ids(record["prompt"] + record[side])) for record, side in sides)
        return apart(needs_of_preference_model, config, settings, "cpu", longest)
    lines = (inputs["prompts"] / "prompts.jsonl").read_text().splitlines()
    prompts = [chat.encode(json.loads(line)["messages"], reply=True) for line in lines]
    longest = max(map(len, prompts)) + case.settings["max_reply_tokens"]
    judges = judges_of(inputs["preference_model"], None, shared="lora_rank" in case.settings)
    if case.job == "train_policy":
        return apart(needs_of_policy, config, judges, PPOSettings(**case.settings), "cpu", longest)
    settings = EvaluationSettings(**case.settings)
    return apart(needs_of_evaluation, config, config, judges, settings, "cpu", settings.num_prompts, longest)


def main() -> int:
    """Measure every case; 1 where the table is further off than its tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--folder", type=Path, help="keep models and results here; default a folder that is removed")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    rows = {}
    with tempfile.TemporaryDirectory(prefix="memory-table-") as temporary:
        world = World(args.folder or Path(temporary))
        for number, name in enumerate(args.only):
            case = CASES[name]
            inputs = world.inputs(case)
            table = reckoned(case, inputs)
            with tempfile.TemporaryDirectory(dir=world.folder) as out:
                peak = measured(Path(out) / str(number), case.job, inputs, case.settings)
            rows[name] = {"reckoned_bytes": table.together, "measured_bytes": peak, "ratio": table.together / peak}
            print(
                f"{name}: {gib(table.together)} reckoned, {gib(peak)} measured, {rows[name]['ratio']:.2f}", flush=True
            )
    if list(rows) == list(CASES):
        file = args.docs / "explanation" / "results" / "memory_table.json"
        numbers = {"hardware": hardware(), "parameters": 69_222_144, "cases": rows}
        file.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    off = [name for name, row in rows.items() if abs(row["ratio"] - 1) > TOLERANCE]
    if off:
        print(f"further off than {TOLERANCE:.0%}: {', '.join(off)}")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
