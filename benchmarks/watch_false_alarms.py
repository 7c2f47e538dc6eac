"""False alarms of the KL wires over 1,000 rollouts of a policy that equals its reference, and what they find.

    python -m benchmarks.watch_false_alarms [--rollouts 1000] [--replies 64] [--tokens 16]

A tiny Llama samples replies with the product's own sampler; log-probs are read as PPO reads them. First the policy is
the reference, or differs from it by rounding or by a hair: a wire that is tripped then is a false alarm, and the exit
status is 1. Then replies do not come from the policy that is read, as with stale weights in a sampler: how many
rollouts it takes until a wire is tripped.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from models.policy.model import Policy
from models.policy.reply_chunks import reply_chunks
from models.policy.results import RolloutSignals
from models.policy.settings import WatchSettings
from models.policy.watch import Watch, mean_and_error
from models.sampling.engine import DecodeEngine, SamplingParams

VOCABULARY = 256
PROMPTS = [[1 + (17 * i + j * j) % (VOCABULARY - 2) for j in range(3 + i)] for i in range(8)]
CHUNK_TOKENS = 4096
QUIET = RolloutSignals(
    kl_nats=0.0,
    kl_error=0.0,
    replies=1,
    entropy=1.0,
    reply_tokens=1.0,
    truncated=0.0,
    repeated_ngrams=0.0,
    duplicates=0.0,
    stock_reply=0.0,
    score=0.0,
)


def main() -> int:
    """Count alarms; 1 where a policy that equals its reference was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--replies", type=int, default=64, help="replies of a rollout")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a reply")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference = tiny_llama()
    replies = sample(reference, args.rollouts * args.replies, args.tokens)
    read = reading(replies, args.tokens)
    at_reference = read(reference)
    print(f"{args.rollouts} rollouts of {args.replies} replies of {args.tokens} tokens or fewer")
    print(f"{'the policy is …':44} {'KL nats':>10} {'means < 0':>10} {'false alarms':>13}")
    false_alarms = 0
    rounded = copy.deepcopy(reference).to(torch.bfloat16).float()
    for name, policy in (
        ("the reference", reference),
        ("the reference, its weights rounded to bf16", rounded),
        ("the reference after noise of 0.1 %", noisy(reference, 1e-3)),
        ("the reference after noise of 1 %", noisy(reference, 1e-2)),
    ):
        # Importance: the replies are the reference's, so the policy that is read is the reference and the other
        # one is what it is compared with. KL(reference || other) is as small as the other way round.
        kls = at_reference - read(policy)
        alarms = count_alarms(kls, args.replies)
        false_alarms += alarms
        means = kls.view(-1, args.replies).mean(dim=1)
        below = int((means < 0).sum())
        print(f"{name:44} {float(kls.mean()):10.2e} {below:10} {alarms:13}", flush=True)
    print("\nreplies come from the reference, but a policy that has learned is read, true KL | rollouts until a stop")
    for scale in (0.003, 0.01, 0.03):
        policy = noisy(reference, scale)
        # Read with the wrong sampler the estimate is minus KL(reference || policy).
        kls = read(policy) - at_reference
        print(f"{-float(kls.mean()):10.2e} | {rollouts_until_stop(kls, args.replies)}", flush=True)
    print("met" if false_alarms == 0 else f"MISSED: {false_alarms} false alarms, expected 0")
    return int(false_alarms > 0)


def tiny_llama() -> LlamaForCausalLM:
    """Two layers with random weights, far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def noisy(model: LlamaForCausalLM, scale: float) -> LlamaForCausalLM:
    """A copy whose weights are off by so much of their own spread."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim == 2:
                parameter += scale * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return other


def sample(model: LlamaForCausalLM, count: int, tokens: int) -> list[tuple[list[int], list[int]]]:
    """`count` replies with their prompts."""
    engine = DecodeEngine(model, 0, 256, max(map(len, PROMPTS)) + tokens)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    params = [SamplingParams(tokens, 1.0, seed=i) for i in range(count)]
    return [(prompt, reply.ids) for prompt, reply in zip(prompts, engine.generate(prompts, params), strict=True)]


def reading(replies: list[tuple[list[int], list[int]]], tokens: int):  # type: ignore[no-untyped-def]
    """A function from a model to the log-prob of each whole reply, (count,)."""
    prompts, ids = [prompt for prompt, _ in replies], [reply for _, reply in replies]
    chunks = reply_chunks(
        prompts, ids, range(len(ids)), width=tokens, pad_id=0, chunk_tokens=CHUNK_TOKENS, device="cpu"
    )

    def read(model: LlamaForCausalLM) -> Tensor:
        return Policy(model).read(chunks, (len(ids), tokens)).logps.double().sum(dim=1)

    return read


def count_alarms(kls: Tensor, replies: int) -> int:
    """How many rollouts tripped a wire, each rollout as if the run had gone on."""
    watch, alarms = Watch(WatchSettings(max_start_kl_nats=0)), 0
    for iteration, rollout in enumerate(kls.view(-1, replies).tolist()):
        mean, error = mean_and_error(rollout)
        signals = replace(QUIET, kl_nats=mean, kl_error=error, replies=replies)
        alarms += watch.rollout(signals, iteration) is not None
    return alarms


def rollouts_until_stop(kls: Tensor, replies: int) -> str:
    """The first rollout that trips a wire, and which."""
    watch = Watch(WatchSettings(max_start_kl_nats=0))
    for iteration, rollout in enumerate(kls.view(-1, replies).tolist()):
        mean, error = mean_and_error(rollout)
        if watch.rollout(replace(QUIET, kl_nats=mean, kl_error=error, replies=replies), iteration):
            return f"{iteration + 1} ({watch.stopped_by})"
    return f"none in {iteration + 1}"


if __name__ == "__main__":
    sys.exit(main())
