"""What each part of a PPO and of a PM step costs: operations and bytes by formula, and seconds beside its roofline.

    python -m benchmarks.step_costs [--device cuda] [--hidden 128 ...]
    python -m benchmarks.step_costs --roofline h200 [--precision bfloat16] [--device cuda]

The roofline of a part is the longer of operations / (operations a second of a large matrix product) and bytes /
(bytes a second of a large copy), both measured on this machine first. The last column is measured / roofline;
docs/explanation/performance.md says why a part lies above 2. On a CPU seconds are CPU seconds of one thread, on a GPU
seconds on the wall.

With --roofline the rates are those of a GPU's data sheet, and beside the roofline stands what handing out the
operations one by one would take (benchmarks/launches.py), without and with graphs. That is computed, on any machine.
With --device cuda the parts run as well; one that takes more than twice its roofline is given its reason, and the
status is 1 where there is none.
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

from benchmarks.launches import LAUNCH_S, all_launches
from benchmarks.speed_world import Clock, Peaks, Size, measured_peaks, uneven, write_world
from models.backbone.batches import chunk_cost, chunks_with_little_padding
from models.backbone.precision import Precision, computing_in
from models.backbone.throughput import PEAKS
from models.chat.format import ChatFormat
from models.policy import training as training_module
from models.policy.rollout import CHUNK_TOKENS_GPU
from models.policy.settings import PPOSettings
from models.preference.model import fresh_preference_model, pair_scores
from models.preference.pairs import TokenPair
from models.runtime.job import Job
from models.runtime.random_numbers import derive_seed
from models.sampling.engine import SamplingParams

FLOAT = 4  # bytes
NUMBER = {"float32": 4, "tf32": 4, "bfloat16": 2}  # bytes that enter a product
EPOCHS = 4

# Data sheets of the SXM boards: dense operations a second (models/backbone/throughput.py) and bytes a second.
BANDWIDTH = {"h200": 4.8e12, "h100": 3.35e12}
RATES = {"float32": "highest", "tf32": "high", "bfloat16": "bfloat16"}

# A kernel of a graph takes about this long, however little it does: the order of magnitude, not measured.
KERNEL_S = 2e-6

# Why a part may take more than twice its roofline on a GPU.
REASONS = {
    "sample replies": "a step is 29 kernels a layer of some microseconds each: small models, few rows",
    "PM scores": "few tokens: the launches of a chunk take longer than its products",
    "read the policy": "few tokens: the launches of a chunk take longer than its products",
    "read the reference": "few tokens: the launches of a chunk take longer than its products",
    "learn: forward and backward": "few tokens: the launches of a chunk take longer than its products",
    "PM step, two sequences a pair": "chunks of four pairs, which the trainer makes larger",
}


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, and bytes that must pass between memory and the processor."""

    flops: float
    bytes: float

    def times(self, factor: float) -> Cost:
        """So many of them."""
        return Cost(self.flops * factor, self.bytes * factor)

    def seconds(self, peaks: Peaks) -> float:
        """The roofline: the longer of both at these rates."""
        return max(self.flops / peaks.flops, self.bytes / peaks.bytes)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def forward(size: Size, lengths: list[int], chosen: int, head: int, number: int = FLOAT) -> Cost:
    """One forward over texts of these lengths, states wanted at `chosen` positions and the vocabulary's head on `head`.

    Operations: a product with a matrix of n weights takes 2n a token; causal attention 2 · hidden · T² a layer for a
    text of T. Behind the last layer's attention only `chosen` tokens go on. Bytes: what enters and leaves the matrix
    products and the attention, 12 hidden + 3 intermediate numbers a token and layer, and the logits twice; weights
    once. Each number takes `number` bytes.
    """
    d, f, tokens = size.hidden, size.intermediate, sum(lengths)
    late = d * d + 3 * d * f  # weights behind the attention
    layer = 3 * d * d + late
    flops = 2 * (tokens * layer * size.layers - (tokens - chosen) * late + head * d * size.vocabulary)
    flops += 2 * d * size.layers * sum(length**2 for length in lengths)
    weights = size.layers * layer + (d * size.vocabulary if head else 0)
    floats = tokens * size.layers * (12 * d + 3 * f) + 2 * head * size.vocabulary + weights
    return Cost(flops, floats * number)


def decoding(size: Size, prompts: list[int], replies: list[int], number: int = FLOAT) -> Cost:
    """Sampling: a forward over the prompts, then a token of every running reply at a time.

    Each step reads every weight once, and the cached keys and values of every running row.
    """
    d = size.hidden
    weights = size.layers * (4 * d * d + 3 * d * size.intermediate) + d * size.vocabulary
    tokens = sum(reply - 1 for reply in replies)
    cached = sum(prompt + i for prompt, reply in zip(prompts, replies, strict=True) for i in range(1, reply))
    steps = Cost(
        2 * tokens * weights + 4 * d * size.layers * cached,
        number * (max(replies) * weights + 2 * d * size.layers * cached),
    )
    return forward(size, prompts, len(prompts), len(prompts), number) + steps


def optimiser(parameters: int) -> Cost:
    """One step of AdamW and of clipping: about 18 operations; weight, gradient and two moments in, three out."""
    return Cost(18 * parameters, 8 * FLOAT * parameters)


def parameters_of(size: Size) -> int:
    """Of a Llama of this size with an untied head, norms included."""
    d = size.hidden
    layer = 4 * d * d + 3 * d * size.intermediate + 2 * d
    return size.layers * layer + 2 * d * size.vocabulary + d


def ppo_lengths(replies: int) -> tuple[list[int], list[int]]:
    """Tokens of prompts and of replies."""
    return uneven(replies, 16, 128, seed=1), uneven(replies, 4, 128, seed=2)


def ppo_costs(size: Size, replies: int, minibatch: int, number: int = FLOAT) -> dict[str, Cost]:
    """By part of one PPO iteration; products' numbers take `number` bytes each."""
    prompts, lengths = ppo_lengths(replies)
    texts = [prompt + reply - 1 for prompt, reply in zip(prompts, lengths, strict=True)]
    read = forward(size, texts, sum(lengths), sum(lengths), number)
    return {
        "sample replies": decoding(size, prompts, lengths, number),
        "PM scores": forward(size, [text + 3 for text in texts], sum(texts) + 3 * replies, 0, number),
        "read the policy": read,
        "read the reference": read,
        "learn: forward and backward": read.times(3 * EPOCHS),
        "learn: optimiser": optimiser(parameters_of(size)).times(EPOCHS * -(-replies // minibatch)),
    }


def ppo_launches(launches: dict[str, int], size: Size, replies: int, minibatch: int) -> dict[str, int]:
    """By part of one PPO iteration, decoding plainly; prompts are left out, and chunks are those of a GPU."""
    prompts, lengths = ppo_lengths(replies)
    texts = [prompt + reply - 1 for prompt, reply in zip(prompts, lengths, strict=True)]

    multiplied = parameters_of(size) - size.hidden * size.vocabulary
    cost = chunk_cost("cuda", size.layers, multiplied)

    def chunks(rows: list[int]) -> int:
        return len(list(chunks_with_little_padding(rows, CHUNK_TOKENS_GPU, cost)))

    parts = [texts[start : start + minibatch] for start in range(0, replies, minibatch)]
    read = sum(map(chunks, parts))
    return {
        "sample replies": launches["decoding step, plain"] * (max(lengths) - 1),
        "PM scores": launches["reading a chunk"] * chunks(texts),
        "read the policy": launches["reading a chunk"] * read,
        "read the reference": launches["reading a chunk"] * read,
        "learn: forward and backward": launches["learning from a chunk"] * read * EPOCHS,
        "learn: optimiser": launches["clipping and optimiser"] * EPOCHS * len(parts),
    }


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


def ppo(
    size: Size, device: torch.device, replies: int, minibatch: int, precision: Precision, folder: Path
) -> dict[str, float]:
    """Seconds by part of one PPO iteration, the second of a run."""
    prompts, lengths = ppo_lengths(replies)
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
        iterations=3, prompts_per_iteration=replies, max_reply_tokens=max(lengths), epochs=EPOCHS,
        minibatch_replies=minibatch, learning_rate=1e-6, precision=precision,
    )  # fmt: skip
    training = training_module.PolicyTraining(job, settings, ChatFormat.load(folder / "initial"))
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
        (training.learner, "learn", "learn"),
        (training.learner.optimiser, "step", "optimiser"),
    ):
        timed(what, name, seconds, key, device)
    try:
        training.run()
    except (StopIteration, RuntimeError) as error:
        if not isinstance(error, StopIteration) and not isinstance(error.__cause__, StopIteration):
            raise
    return {
        "sample replies": seconds["sample"],
        "PM scores": seconds["score"],
        "read the policy": seconds["policy"],
        "read the reference": seconds["reference"],
        "learn: forward and backward": seconds["learn"] - seconds["optimiser"],
        "learn: optimiser": seconds["optimiser"],
    }


def preference(size: Size, device: torch.device, pairs: int, precision: Precision, folder: Path) -> tuple[Cost, float]:
    """Cost and seconds of one PM step on pairs as two sequences each, which trees of a dialogue are held against."""
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
            with computing_in(precision, device):
                high, low = pair_scores(model, made[start : start + 4], chat.pad_id, device)
            (-torch.nn.functional.logsigmoid(high - low).sum() / pairs).backward()
        optimiser_.step()
        took.append(clock.seconds())
    lengths = [p + side for p, b, w in zip(prompts, better, worse, strict=True) for side in (b, w)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cost = forward(size, lengths, sum(lengths), 0, NUMBER[precision]).times(3) + optimiser(parameters)
    return cost, min(took)


def measured(args: argparse.Namespace, size: Size, precision: Precision) -> list[tuple[str, Cost, float]]:
    """Every part with its cost and the seconds it took on this machine."""
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        seconds = ppo(size, device, args.replies, args.minibatch, precision, Path(folder))
        pm = preference(size, device, 32, precision, Path(folder))
    costs = ppo_costs(size, args.replies, args.minibatch, NUMBER[precision])
    rows = [(name, cost, seconds[name]) for name, cost in costs.items()]
    return [*rows, ("PM step, two sequences a pair", *pm)]


def beside_this_machine(args: argparse.Namespace, size: Size) -> int:
    """Measure and print the table."""
    device = torch.device(args.device)
    peaks = measured_peaks(device, torch.float32)
    print(f"{size}; {device}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"a large product {peaks.flops / 1e9:.0f} GFLOP/s, a large copy {peaks.bytes / 1e9:.1f} GB/s, float32")
    print(f"{'':30} {'GFLOP':>8} {'GB':>7} {'roofline s':>10} {'seconds':>8} {'MFU':>6}  times roofline")
    for name, cost, seconds in measured(args, size, "float32"):
        roofline = cost.seconds(peaks)
        print(
            f"{name:30} {cost.flops / 1e9:8.2f} {cost.bytes / 1e9:7.2f} {roofline:10.3f} {seconds:8.3f} "
            f"{cost.flops / seconds / peaks.flops:6.0%}  {seconds / roofline:5.1f}"
        )
    return 0


def beside_a_data_sheet(args: argparse.Namespace, size: Size) -> int:
    """Compute and print the table; on a GPU measure too, and 1 where a part above twice its roofline has no reason."""
    peaks = Peaks(PEAKS[args.roofline.upper()][RATES[args.precision]], BANDWIDTH[args.roofline])
    precision: Precision = "bfloat16" if args.precision == "bfloat16" else "float32"
    launches = all_launches(size.layers, precision, joined=False, device=torch.device("cpu"))
    by_part = ppo_launches(launches, size, args.replies, args.minibatch)
    steps = by_part["sample replies"] // launches["decoding step, plain"]
    costs = ppo_costs(size, args.replies, args.minibatch, NUMBER[args.precision])
    print(f"{size}, {parameters_of(size) / 1e6:,.0f} M parameters, {args.precision}; {args.replies} replies")
    print(
        f"{args.roofline.upper()} by its data sheet: {peaks.flops / 1e12:.0f} TFLOP/s, {peaks.bytes / 1e12:.2f} TB/s; "
        f"{LAUNCH_S * 1e6:.0f} µs a launch, {KERNEL_S * 1e6:.0f} µs a kernel of a graph (assumed)"
    )
    print(
        f"{'':30} {'TFLOP':>8} {'GB':>8} {'bound by':>10} {'roofline ms':>12} {'launches':>9} {'ms':>8}  times roofline"
    )
    for name, cost in costs.items():
        roofline, launched = cost.seconds(peaks), by_part[name] * LAUNCH_S
        bound = "operations" if cost.flops / peaks.flops > cost.bytes / peaks.bytes else "bytes"
        print(
            f"{name:30} {cost.flops / 1e12:8.2f} {cost.bytes / 1e9:8.1f} {bound:>10} {roofline * 1e3:12.2f} "
            f"{by_part[name]:9} {launched * 1e3:8.1f}  {max(launched / roofline, 1):5.1f}"
        )
        if name == "sample replies":
            handed = launches["decoding step, graphs"] * steps
            kernels = launches["decoding step, fixed shapes"] * steps * KERNEL_S
            print(
                f"{'  with graphs':30} {'':8} {'':8} {'kernels':>10} {kernels * 1e3:12.2f} {handed:9} "
                f"{handed * LAUNCH_S * 1e3:8.1f}  {max(kernels / roofline, handed * LAUNCH_S / roofline, 1):5.1f}"
            )
    if torch.device(args.device).type != "cuda":
        return 0
    missed = 0
    torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
    print(f"measured on {torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, cost, seconds in measured(args, size, precision):
        ratio = seconds / cost.seconds(peaks)
        reason = "" if ratio <= 2 else REASONS.get(name, "NO REASON")
        missed += reason == "NO REASON"
        print(f"{name:30} {seconds * 1e3:8.2f} ms  {ratio:6.1f} times its roofline  {reason}")
    return int(missed > 0)


def main() -> int:
    """Read the command line, and print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--replies", type=int, default=64, help="of one iteration, all decoded at once")
    parser.add_argument("--minibatch", type=int, default=16, help="replies of an optimiser step")
    parser.add_argument("--roofline", choices=sorted(BANDWIDTH), help="by the data sheet of this GPU")
    parser.add_argument("--precision", choices=sorted(NUMBER), default="bfloat16", help="with --roofline")
    for name in ("hidden", "layers", "heads", "intermediate", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(args.hidden, args.layers, args.heads, args.intermediate, args.vocabulary)
    return beside_a_data_sheet(args, size) if args.roofline else beside_this_machine(args, size)


if __name__ == "__main__":
    sys.exit(main())
