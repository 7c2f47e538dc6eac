"""What each part of a PPO and of a PM step costs: operations and bytes by formula, and seconds beside its roofline.

    python -m benchmarks.step_costs [--device cuda] [--hidden 128 ...]

The roofline of a part is the longer of operations / (operations a second of a large matrix product) and bytes /
(bytes a second of a large copy), both measured on this machine first. The last column is measured / roofline;
docs/performance.md says why a part lies above 2. On a CPU seconds are CPU seconds of one thread, on a GPU seconds on
the wall.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed_world import Clock, Size, measured_peaks, uneven, write_world
from models.chat import ChatFormat
from models.comparison_data import TokenPair
from models.jobs import train_policy
from models.jobs.runtime import Job
from models.ppo_settings import PPOSettings
from models.preference import fresh_preference_model, pair_scores
from models.sampler import SamplingParams
from models.sampler_random import derive_seed

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, and bytes that must pass between memory and the processor."""

    flops: float
    bytes: float

    def times(self, factor: float) -> Cost:
        """So many of them."""
        return Cost(self.flops * factor, self.bytes * factor)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def forward(size: Size, lengths: list[int], chosen: int, head: int) -> Cost:
    """One forward over texts of these lengths, states wanted at `chosen` positions and the vocabulary's head on `head`.

    Operations: a product with a matrix of n weights takes 2n a token; causal attention 2 · hidden · T² a layer for a
    text of T. Behind the last layer's attention only `chosen` tokens go on. Bytes: what enters and leaves the matrix
    products and the attention, 12 hidden + 3 intermediate floats a token and layer, and the logits twice; weights once.
    """
    d, f, tokens = size.hidden, size.intermediate, sum(lengths)
    late = d * d + 3 * d * f  # weights behind the attention
    layer = 3 * d * d + late
    flops = 2 * (tokens * layer * size.layers - (tokens - chosen) * late + head * d * size.vocabulary)
    flops += 2 * d * size.layers * sum(length**2 for length in lengths)
    weights = size.layers * layer + (d * size.vocabulary if head else 0)
    floats = tokens * size.layers * (12 * d + 3 * f) + 2 * head * size.vocabulary + weights
    return Cost(flops, floats * FLOAT)


def decoding(size: Size, prompts: list[int], replies: list[int]) -> Cost:
    """Sampling: a forward over the prompts, then a token of every running reply at a time.

    Each step reads every weight once, and the cached keys and values of every running row.
    """
    d = size.hidden
    weights = size.layers * (4 * d * d + 3 * d * size.intermediate) + d * size.vocabulary
    tokens = sum(reply - 1 for reply in replies)
    cached = sum(prompt + i for prompt, reply in zip(prompts, replies, strict=True) for i in range(1, reply))
    steps = Cost(
        2 * tokens * weights + 4 * d * size.layers * cached,
        FLOAT * (max(replies) * weights + 2 * d * size.layers * cached),
    )
    return forward(size, prompts, len(prompts), len(prompts)) + steps


def optimiser(parameters: int) -> Cost:
    """One step of AdamW and of clipping: about 18 operations; weight, gradient and two moments in, three out."""
    return Cost(18 * parameters, 8 * FLOAT * parameters)


def timed(what: Any, name: str, seconds: dict[str, float], key: str, device: torch.device) -> None:
    """Replace a method by one that adds to `seconds[key]` what it took."""
    plain: Callable[..., Any] = getattr(what, name)

    def method(*args: Any, **more: Any) -> Any:
        clock = Clock(device)
        try:
            return plain(*args, **more)
        finally:
            seconds[key] += clock.seconds()

    setattr(what, name, method)


def ppo(size: Size, device: torch.device, replies: int, folder: Path) -> list[tuple[str, Cost, float]]:
    """The parts of one PPO iteration, the second of a run."""
    epochs, minibatch = 4, 16
    prompts, lengths = uneven(replies, 16, 128, seed=1), uneven(replies, 4, 128, seed=2)
    write_world(folder, size, prompts)
    (folder / "out").mkdir()
    seconds: dict[str, float] = defaultdict(float)

    class TwoIterations(Job):
        def log(self, step: int, **numbers: Any) -> None:
            if step == 2:
                raise StopIteration
            seconds.clear()

    inputs = {name: str(folder / name) for name in ("initial", "preference_model", "prompts")}
    job = TwoIterations({"job": "train_policy", "inputs": inputs, "device": device.type}, folder / "out")
    job.prepare_process()
    settings = PPOSettings(
        iterations=3, prompts_per_iteration=replies, max_reply_tokens=max(lengths), epochs=epochs,
        minibatch_replies=minibatch, learning_rate=1e-6,
    )  # fmt: skip
    training = train_policy.PolicyTraining(job, settings, ChatFormat.load(folder / "initial"))
    collector = training.collector
    collector.engine.eos_id = -1
    training._sampling = lambda seed, count: [  # type: ignore[method-assign]
        SamplingParams(lengths[i], seed=derive_seed(seed, i)) for i in range(count)
    ]
    for what, name, key in (
        (collector, "sample", "sample"),
        (collector, "scores", "score"),
        (collector.policy, "read", "policy"),
        (collector.reference, "read", "reference"),
        (training, "_learn", "learn"),
        (training.optimiser, "step", "optimiser"),
    ):
        timed(what, name, seconds, key, device)
    try:
        training.run()
    except (StopIteration, RuntimeError) as error:
        if not isinstance(error, StopIteration) and not isinstance(error.__cause__, StopIteration):
            raise
    texts = [prompt + reply - 1 for prompt, reply in zip(prompts, lengths, strict=True)]
    read = forward(size, texts, sum(lengths), sum(lengths))
    steps = epochs * -(-replies // minibatch)
    parameters = sum(parameter.numel() for parameter in training.policy.model.parameters())
    return [
        ("sample replies", decoding(size, prompts, lengths), seconds["sample"]),
        ("PM scores", forward(size, [text + 3 for text in texts], sum(texts) + 3 * replies, 0), seconds["score"]),
        ("read the policy", read, seconds["policy"]),
        ("read the reference", read, seconds["reference"]),
        ("learn: forward and backward", read.times(3 * epochs), seconds["learn"] - seconds["optimiser"]),
        ("learn: optimiser", optimiser(parameters).times(steps), seconds["optimiser"]),
    ]


def preference(size: Size, device: torch.device, pairs: int, folder: Path) -> list[tuple[str, Cost, float]]:
    """One PM step on pairs as two sequences each: the computation that trees of a dialogue are held against."""
    chat = ChatFormat.load(folder / "initial")
    model = fresh_preference_model(folder / "initial", chat, 0, device)
    prompts, better, worse = uneven(pairs, 16, 128, 1), uneven(pairs, 8, 96, 2), uneven(pairs, 8, 96, 3)
    word = chat.vocab_size - 1
    made = [
        TokenPair(
            str(i),
            "random",
            "helpful",
            *(array("i", [word] * (n - 1) + [last]) for n, last in ((p, word), (b, chat.score_id), (w, chat.score_id))),
        )
        for i, (p, b, w) in enumerate(zip(prompts, better, worse, strict=True))
    ]
    optimiser_ = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    took = []
    for _ in range(3):
        clock = Clock(device)
        optimiser_.zero_grad(set_to_none=True)
        for start in range(0, pairs, 4):
            high, low = pair_scores(model, made[start : start + 4], chat.pad_id, device)
            (-torch.nn.functional.logsigmoid(high - low).sum() / pairs).backward()
        optimiser_.step()
        took.append(clock.seconds())
    lengths = [p + side for p, b, w in zip(prompts, better, worse, strict=True) for side in (b, w)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cost = forward(size, lengths, sum(lengths), 0).times(3) + optimiser(parameters)
    return [("PM step, two sequences a pair", cost, min(took))]


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--replies", type=int, default=64)
    for name in ("hidden", "layers", "heads", "intermediate", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    size = Size(args.hidden, args.layers, args.heads, args.intermediate, args.vocabulary)
    peaks = measured_peaks(device, torch.float32)
    print(f"{size}; {device}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"a large product {peaks.flops / 1e9:.0f} GFLOP/s, a large copy {peaks.bytes / 1e9:.1f} GB/s, float32")
    print(f"{'':30} {'GFLOP':>8} {'GB':>7} {'roofline s':>10} {'seconds':>8} {'MFU':>6}  times roofline")
    with tempfile.TemporaryDirectory() as folder:
        rows = ppo(size, device, args.replies, Path(folder)) + preference(size, device, 32, Path(folder))
    for name, cost, seconds in rows:
        roofline = max(cost.flops / peaks.flops, cost.bytes / peaks.bytes)
        print(
            f"{name:30} {cost.flops / 1e9:8.2f} {cost.bytes / 1e9:7.2f} {roofline:10.3f} {seconds:8.3f} "
            f"{cost.flops / seconds / peaks.flops:6.0%}  {seconds / roofline:5.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
