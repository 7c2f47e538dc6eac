"""The sampler against `generate` of transformers on equal work, and how full it keeps its batch.

    python -m benchmarks.sampler_speed [--rounds 5] [--device cuda] [--other-steps]

1. Equal prompts, replies of equal length, log-probs of the sampled tokens included on both sides (`generate` keeps its
   scores, from which they are gathered). Tokens per second, CPU seconds of one thread, the best of several rounds taken
   in turn.
   On a GPU also without graphs; with --other-steps on a CPU the steps of fixed shapes that a GPU records.
2. Uneven replies with four times as many requests as slots: the share of slots that decode while requests wait.

Exits with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from benchmarks.speed_world import Clock, Size, has_amx, measured_peaks, uneven
from models.sampling.engine import DecodeEngine, SamplingParams

NEVER = -1  # an end-of-turn id that no token has
FASTER = {torch.float32: 1.8, torch.bfloat16: 3.0}
BUSY = 0.85


def main() -> int:
    """Measure and print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--reply-tokens", type=int, default=64)
    for name in ("hidden", "layers", "heads", "intermediate", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    parser.add_argument(
        "--bf16-anyway", action="store_true", help="run bf16 rows also on a CPU without AMX, where they have no target"
    )
    parser.add_argument("--other-steps", action="store_true", help="on a CPU: steps of fixed shapes, as they are")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    size = Size(args.hidden, args.layers, args.heads, args.intermediate, args.vocabulary)
    print(f"{size}\n{device}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    missed = 0
    for dtype in FASTER:
        name = str(dtype).removeprefix("torch.")
        judged = dtype == torch.float32 or device.type != "cpu" or has_amx()
        if not judged and not args.bf16_anyway:
            print(f"{name}: not run, this CPU has no AMX (--bf16-anyway runs it)")
            continue
        torch.manual_seed(0)
        model = LlamaForCausalLM(size.config()).to(device, dtype).eval()
        seconds_of = equal_work(model, args)
        peaks = measured_peaks(device, dtype)
        parameters = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
        print(f"{name}: one step of {args.rows} rows reads every weight once and multiplies it with each row;")
        for who, seconds in seconds_of.items():
            rate = args.rows * args.reply_tokens / seconds
            flops = 2 * parameters * (rate + rate * args.prompt_tokens / args.reply_tokens)
            read = parameters * model.dtype.itemsize * args.reply_tokens / seconds
            print(
                f"  {who:14} {rate:9.0f} tokens/s   {flops / 1e9:8.1f} GFLOP/s (MFU {flops / peaks.flops:.1%})   "
                f"weights read at {read / 1e9:.2f} GB/s ({read / peaks.bytes:.1%} of a copy)"
            )
        ratio = seconds_of["generate"] / seconds_of["sampler"]
        missed += judged and ratio < FASTER[dtype]
        told = verdict(ratio >= FASTER[dtype]) if judged else "no target without AMX"
        print(f"  ratio {ratio:.2f} (target {FASTER[dtype]}) {told}")
    share, steps = busy_share(size, device)
    missed += share < BUSY
    print(
        f"slots busy while requests wait: {share:.1%} over {steps} steps (target {BUSY:.0%}) {verdict(share >= BUSY)}"
    )
    return int(missed > 0)


def verdict(met: bool) -> str:
    """How a row of the table ends."""
    return "met" if met else "MISSED"


def equal_work(model: LlamaForCausalLM, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the sampler and of `generate` for the same prompts and reply lengths, each the best round."""
    vocabulary = model.config.vocab_size
    prompts = torch.randint(vocabulary, (args.rows, args.prompt_tokens), generator=torch.Generator().manual_seed(1))
    engines = {"sampler": DecodeEngine(model, NEVER, max_slots=args.rows)}
    if model.device.type == "cuda":
        engines["without graphs"] = DecodeEngine(model, NEVER, max_slots=args.rows, graphs=False)
    elif args.other_steps:
        engines["fixed shapes"] = DecodeEngine(model, NEVER, max_slots=args.rows, graphs=True)
    for engine in engines.values():
        engine.reserve(args.prompt_tokens + args.reply_tokens)
    settings = GenerationConfig(
        max_new_tokens=args.reply_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None
    )
    lists, on_device = prompts.tolist(), prompts.to(model.device)
    mask = torch.ones_like(on_device)
    took: dict[str, list[float]] = {name: [] for name in (*engines, "generate")}
    for _ in range(args.rounds + 1):
        for name, engine in engines.items():
            clock = Clock(model.device)
            engine.sync()
            replies = engine.generate(lists, [SamplingParams(args.reply_tokens, seed=i) for i in range(args.rows)])
            took[name].append(clock.seconds())
            assert all(len(reply.logprobs) == args.reply_tokens for reply in replies)
        clock = Clock(model.device)
        logps = generate(model, on_device, mask, settings)
        took["generate"].append(clock.seconds())
        assert logps.shape == (args.rows, args.reply_tokens)
    # The first round fills caches, and records graphs.
    return {name: min(seconds[1:]) for name, seconds in took.items()}


@torch.no_grad()
def generate(
    model: LlamaForCausalLM, prompts: torch.Tensor, mask: torch.Tensor, settings: GenerationConfig
) -> torch.Tensor:
    """Replies of transformers with the log-probs of their tokens, (B, R)."""
    output = model.generate(
        input_ids=prompts,
        attention_mask=mask,
        generation_config=settings,
        return_dict_in_generate=True,
        output_scores=True,
    )
    replies = output.sequences[:, prompts.shape[1] :]
    steps = (torch.log_softmax(scores.float(), dim=-1) for scores in output.scores)
    return torch.stack([logps.gather(1, replies[:, [i]])[:, 0] for i, logps in enumerate(steps)], dim=1)


def busy_share(size: Size, device: torch.device, slots: int = 32, requests: int = 128) -> tuple[float, int]:
    """Share of slots that decode, over the steps at whose start requests wait, and how many steps those are."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(size.config()).to(device).eval()
    engine = DecodeEngine(model, NEVER, max_slots=slots)
    replies, prompts = uneven(requests, 4, 128, seed=2), uneven(requests, 8, 128, seed=3)
    words = torch.randint(size.vocabulary, (max(prompts),), generator=torch.Generator().manual_seed(1)).tolist()
    for i, (reply, prompt) in enumerate(zip(replies, prompts, strict=True)):
        engine.submit(words[:prompt], SamplingParams(reply, seed=i))
    left, busy = requests, []
    while engine.active:
        waited = engine.active > slots
        tokens = engine.step()
        if waited:
            busy.append(len(tokens) / slots)
        left -= sum(token.finished is not None for token in tokens)
    assert left == 0, f"{left} requests never ended"
    return sum(busy) / len(busy), len(busy)


if __name__ == "__main__":
    sys.exit(main())
