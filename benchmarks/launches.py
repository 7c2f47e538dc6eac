"""How many kernels a decoding step and a training step launch, and how many a GPU would be handed with graphs.

    python -m benchmarks.launches [--layers 24] [--precision bfloat16] [--joined] [--device cuda]

The operations of each step are counted while it runs on a CPU with small matrices: their number depends on the layers,
not on the sizes. Counted is what launches a kernel on a GPU (no views, no empty tensors), with the way that the code
takes there: modules in place of gradients by hand, one block of cached positions up to 512, a norm as one kernel. An
operation over many tensors (clipping, optimiser) counts as one, and so do those that are several kernels (a sum over a
long row); some ten operations of a step on lengths and sampling settings, which stay on the CPU, are counted though no
GPU sees them. On a GPU the launches themselves are counted, by torch.profiler.

Then how many shapes the batches of 20 iterations of PPO have on a GPU (512 uneven replies, minibatches of 64), as they
are and filled up to few, for models of several sizes: the larger, the more chunks.

Launches at 5 µs each are what the CPU needs to hand out a step; where the GPU needs less, it idles in between.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from benchmarks.speed_world import Size, uneven
from models.backbone.batches import chunk_cost, chunks_with_little_padding, right_padded
from models.backbone.precision import EXACT, Filling, Precision, filling
from models.policy.critic import Critic
from models.policy.model import Policy, selected_logps
from models.policy.reply_chunks import ReplyChunk, reply_chunks
from models.policy.rollout import CHUNK_TOKENS_GPU
from models.sampling import key_value_cache, llama
from models.sampling.engine import DecodeEngine, SamplingParams
from models.sampling.static import Step

# Of an eager operation, from Python to the GPU's queue: the order of magnitude, not measured.
LAUNCH_S = 5e-6
NO_KERNEL = ("empty", "new_empty", "lift_fresh", "_local_scalar_dense", "_reshape_alias", "_unsafe_view")


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if not self.paused:
            views = any(part.alias_info and not part.alias_info.is_write for part in func._schema.returns)
            self.kernels += not (views or name.startswith(NO_KERNEL))
        return func(*args, **(kwargs or {}))

    def norm(self, states: Tensor, *args: Any, **more: Any) -> Tensor:
        """F.rms_norm as one kernel forward and, by its gradients, two backward; a CPU does it in six."""
        if self.paused:
            return _rms_norm(states, *args, **more)
        self.kernels += 1
        with self.hidden():
            return _Norm.apply(self, states, *args)  # type: ignore[no-any-return, no-untyped-call]

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Count nothing inside the block."""
        self.paused = True
        yield
        self.paused = False


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, counter: _Counter, states: Tensor, shape: Any, weight: Tensor | None, eps: float) -> Tensor:
        ctx.counter = counter
        ctx.set_materialize_grads(False)
        with torch.enable_grad():
            ctx.states, ctx.weight = states.detach().requires_grad_(), weight
            ctx.normed = _rms_norm(ctx.states, shape, weight, eps)
        return ctx.normed.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        counter: _Counter = ctx.counter
        counter.kernels += 2
        with counter.hidden():
            given = torch.autograd.grad(ctx.normed, [ctx.states, ctx.weight], gradient)
        return None, given[0], None, given[1], None


_rms_norm = F.rms_norm


def counted(step: Callable[[], Any], device: torch.device) -> int:
    """What a step launches, after it has run once."""
    step()
    if device.type == "cuda":
        from torch.profiler import ProfilerActivity, profile

        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize()
        # Runtime and driver calls, and copies between CPU and GPU.
        calls = ("LaunchKernel", "GraphLaunch", "MemcpyAsync")
        return sum(any(call in event.name for call in calls) for event in profiler.events())
    with counting() as counter:
        step()
    return counter.kernels


@contextmanager
def counting() -> Iterator[_Counter]:
    counter = _Counter()
    F.rms_norm = counter.norm  # type: ignore[assignment]
    try:
        with counter:
            yield counter
    finally:
        F.rms_norm = _rms_norm


@contextmanager
def as_on_a_gpu(joined: bool) -> Iterator[None]:
    """The sampler's blocks of cached positions as there, and projections of a large model apart, as they lie."""
    block, below = key_value_cache._FIRST_BLOCK_CPU, llama.JOIN_BELOW_PARAMETERS
    key_value_cache._FIRST_BLOCK_CPU = key_value_cache._FIRST_BLOCK_GPU
    if not joined:
        llama.JOIN_BELOW_PARAMETERS = 0
    try:
        yield
    finally:
        key_value_cache._FIRST_BLOCK_CPU, llama.JOIN_BELOW_PARAMETERS = block, below


def of_decoding(model: Any, precision: Precision, device: torch.device) -> dict[str, int]:
    """A decoding step of four rows with the draw of its tokens: plain, in fixed shapes, and what is outside graphs."""

    def step_of(graphs: bool, record: Callable[[Step], Step] | None = None) -> Callable[[], Any]:
        engine = DecodeEngine(model, -1, 4, precision=precision, graphs=graphs)
        if engine._static is not None and record is not None:
            engine._static._record = record
        engine.reserve(256)
        for seed in range(4):
            engine.submit([5, 6, 7, 8 + seed], SamplingParams(100, seed=seed))
        engine.step()
        return engine.step

    found = {"decoding step, plain": counted(step_of(graphs=False), device)}
    if device.type == "cuda":
        return found | {"decoding step, graphs": counted(step_of(graphs=True), device)}
    found["decoding step, fixed shapes"] = counted(step_of(graphs=True), device)
    with counting() as counter:

        def recorded(step: Step) -> Step:
            def replay() -> None:
                counter.kernels += 1
                with counter.hidden():
                    step()

            return replay

        step = step_of(graphs=True, record=recorded)
        step()
        counter.kernels = 0
        step()
    return found | {"decoding step, graphs": counter.kernels}


def of_learning(model: Any, precision: Precision, device: torch.device) -> dict[str, int]:
    """A chunk of replies forward and with its backward, as PPO learns from it, and clipping with the optimiser."""
    policy, critic = Policy(model, precision), Critic("shared", model.base_model, 0, precision)
    policy.by_hand = False
    chunks = reply_chunks(
        [[5, 6, 7], [8]], [[9, 10], [11] * 4], range(2), width=4, pad_id=0, chunk_tokens=1024, device=device
    )
    optimiser = torch.optim.AdamW([*model.parameters(), *critic.head.parameters()], lr=1e-6, fused=True)

    def learn(chunk: ReplyChunk) -> None:
        states, logits = policy.states_and_logits(chunk)
        logps, _ = selected_logps(logits, chunk.targets)
        (logps.sum() + critic(chunk, states).sum()).backward()  # type: ignore[no-untyped-call]

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    found = {
        "reading a chunk": counted(lambda: policy.read(chunks, (2, 4)), device),
        "learning from a chunk": counted(lambda: learn(chunks[0]), device),
    }
    return found | {"clipping and optimiser": counted(update, device)}


def all_launches(layers: int, precision: Precision, joined: bool, device: torch.device) -> dict[str, int]:
    """By name of the step; a Llama with grouped heads, as published ones have them."""
    torch.manual_seed(0)
    config = Size(hidden=64, layers=layers, heads=4, intermediate=128, vocabulary=128).config()
    config.num_key_value_heads = 2
    model = LlamaForCausalLM(config).to(device)  # type: ignore[arg-type]
    with as_on_a_gpu(joined):
        found = of_decoding(model.eval(), precision, device)
    return found | of_learning(model.train(), precision, device)


def shapes_met(fill: Filling, cost: int, iterations: int = 20) -> tuple[int, int, float]:
    """Different shapes of chunks, how many chunks there were, and the share of padding in them."""
    shapes: set[tuple[int, int]] = set()
    chunks = real = computed = 0
    for seed in range(iterations):
        prompts, lengths = uneven(512, 16, 128, 2 * seed), uneven(512, 4, 128, 2 * seed + 1)
        texts = [prompt + reply - 1 for prompt, reply in zip(prompts, lengths, strict=True)]
        for start in range(0, 512, 64):
            part = texts[start : start + 64]
            for members in chunks_with_little_padding(part, CHUNK_TOKENS_GPU, cost):
                ids, _ = right_padded([[1] * part[i] for i in members], 0, torch.device("cpu"), fill, CHUNK_TOKENS_GPU)
                shapes.add((ids.shape[0], ids.shape[1]))
                chunks, computed = chunks + 1, computed + ids.numel()
        real += sum(texts)
    return len(shapes), chunks, 1 - real / computed


def main() -> int:
    """Count and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--joined", action="store_true", help="projections joined, as below 50 M parameters")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    print(f"{args.layers} layers, {args.precision}, {device}, torch {torch.__version__}")
    print(f"{'':30} {'launches':>8} {'ms at 5 µs':>11}")
    for name, found in all_launches(args.layers, args.precision, args.joined, device).items():
        print(f"{name:30} {found:8} {found * LAUNCH_S * 1e3:11.2f}")
    for layers, parameters in ((32, 6.6e9), (16, 1.3e9), (24, 0.5e9)):
        cost = chunk_cost("cuda", layers, round(parameters))
        print(f"{parameters / 1e9} B parameters in {layers} layers: a chunk costs as much as {cost} tokens")
        for name, fill in (("as they are", EXACT), ("filled up", filling("bfloat16", "cuda"))):
            shapes, chunks, padding = shapes_met(fill, cost)
            print(f"  batches {name}: {shapes} shapes of {chunks} chunks, {padding:.1%} padding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
