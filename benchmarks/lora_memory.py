"""Peak memory and speed of the PPO job and of the preference model's, whole weights against adapters.

    python -m benchmarks.lora_memory [--sizes small,medium,large] [--rank 8] [--critic shared] [--replies 16]

Each job runs whole, from loading to publishing, as a process of its own with one thread. Memory is the highest resident
set above what the process held when everything was imported and nothing loaded; `while training` leaves out what
comes after the last step (reports, merging, publishing). PPO meets the preference model that the same way of training
made: as a whole beside the policy, or as an adapter on the policy's base. Samples (replies, or pairs) are counted per
CPU second from the first step's end to the last one's. Prints a Markdown table; has no target.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.memory import Memory
from benchmarks.preference_model_scaling import write_set
from benchmarks.speed_world import Size, cpu_seconds, uneven, write_world
from models.jobs import train_policy, train_preference_model
from models.runtime.job import Job

ROOT = Path(__file__).resolve().parent.parent
SIZES = {
    "small": Size(hidden=256, layers=6, heads=4, intermediate=688, vocabulary=4096),
    "medium": Size(hidden=512, layers=8, heads=8, intermediate=1408, vocabulary=4096),
    # Above 50 M parameters the sampler reads the weights where they are.
    "large": Size(hidden=768, layers=10, heads=12, intermediate=2048, vocabulary=4096),
}
JOBS: dict[str, Any] = {"train_policy": train_policy.run, "train_preference_model": train_preference_model.run}


class Measured(Job):
    """A job that notes CPU seconds at every step, and the peak when the last one was done."""

    def __init__(self, spec: dict[str, Any], out: Path, memory: Memory) -> None:
        super().__init__(spec, out)
        self.memory, self.cpu_s, self.training_mb = memory, list[float](), 0.0

    def log(self, step: int, **numbers: Any) -> None:
        """One line a step."""
        super().log(step, **numbers)
        self.cpu_s.append(cpu_seconds())
        self.training_mb = self.memory.peak_mb()


def measure(path: Path) -> dict[str, float]:
    """Run the job of a spec; in a process of its own."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    import peft  # noqa: F401  (so that both ways of training have imported the same)

    memory = Memory()
    memory.begin()
    out = path.parent / path.stem
    out.mkdir()
    job = Measured(spec, out, memory)
    job.prepare_process()
    JOBS[spec["job"]](job)
    seconds = job.cpu_s[-1] - job.cpu_s[0]
    return {
        "peak_mb": memory.peak_mb(),
        "training_mb": job.training_mb,
        "samples_per_s": spec["samples_per_step"] * (len(job.cpu_s) - 1) / seconds,
    }


def run(folder: Path, name: str, spec: dict[str, Any]) -> dict[str, float]:
    """Measure one job by its spec; its result lies in `folder`/name/result."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(spec | {"device": "cpu"}), encoding="utf-8")
    command = [sys.executable, "-m", __spec__.name, "--measure", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stderr[-2000:]}\nerror: {name} ended with {done.returncode}.")
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def measure_size(name: str, args: argparse.Namespace) -> None:
    """Four jobs of one size, and their lines of the table."""
    size, count = SIZES[name], args.replies
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_world(folder, size, uneven(count, 16, 128, seed=0))
        write_set(folder / "comparisons", args.pairs)
        initial = folder / "initial" / "model.safetensors"
        jobs: dict[str, dict[str, dict[str, float]]] = {"preference model": {}, "PPO": {}}
        for way, lora in (("whole", {}), ("adapters", {"lora_rank": args.rank})):
            pm = {"batch_pairs": 16, "max_tokens": 512, "learning_rate": 1e-4} | lora
            inputs = {"initial": str(folder / "initial"), "comparisons": str(folder / "comparisons")}
            spec = {"job": "train_preference_model", "inputs": inputs, "settings": pm, "samples_per_step": 16}
            jobs["preference model"][way] = run(folder, f"pm-{way}", spec)
            inputs = {"initial": str(folder / "initial"), "prompts": str(folder / "prompts")}
            inputs["preference_model"] = str(folder / f"pm-{way}" / "result")
            ppo = {"iterations": 2, "prompts_per_iteration": count, "minibatch_replies": count // 2}
            ppo |= {"max_reply_tokens": 64, "learning_rate": 1e-5, "critic": args.critic} | lora
            spec = {"job": "train_policy", "inputs": inputs, "settings": ppo, "samples_per_step": count}
            jobs["PPO"][way] = run(folder, f"ppo-{way}", spec)
        weights_mb = initial.stat().st_size / 2**20
        for title, ways in jobs.items():
            whole, adapters = ways["whole"], ways["adapters"]
            print(f"| {title}, hidden {size.hidden}, {size.layers} layers, weights {weights_mb:.0f} MB ", end="")
            for key in ("peak_mb", "training_mb"):
                print(f"| {whole[key]:,.0f} | {adapters[key]:,.0f} | {adapters[key] / whole[key]:.0%} ", end="")
            print(f"| {whole['samples_per_s']:.2f} | {adapters['samples_per_s']:.2f} |", flush=True)


def main() -> int:
    """Measure every size; always 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="small,medium", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--critic", default="shared", help="of PPO: shared, detached, separate, preference_model")
    parser.add_argument("--replies", type=int, default=16, help="of an iteration")
    parser.add_argument("--pairs", type=int, default=54, help="comparisons of the preference model")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    if args.measure is not None:
        print(json.dumps(measure(args.measure)))
        return 0
    print("| job | peak MB, whole | adapters | share | while training MB, whole | adapters | share ", end="")
    print("| samples/CPU s, whole | adapters |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in args.sizes.split(","):
        measure_size(name, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
