"""What Adam's first step of PPO does to a published model: how far tokens move, by rate and by part of the model.

    python -m benchmarks.first_step FOLDER [--replies 20] [--tokens 24] [--threads 2]

FOLDER is a prepared policy (the result of `python -m models.jobs.prepare_policy`). Real replies of $ORCHESTRATOR_DATA
stand in for a rollout: four in five are cut off, one in five ends, and those that end earn 1 less, beside noise of 0.3.
One gradient of that rollout is taken, and from it the step that Adam takes first, undone after each line of the table:
of all weights, of the tied embedding alone and of the rest, at shares of the rate.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.policy.model import Policy, selected_logps
from models.policy.ppo import whiten
from models.policy.reply_chunks import ReplyChunk, reply_chunks
from models.policy.settings import ADAM_EPS, MAX_GRADIENT_NORM

RATE = 3e-6
SHARES = (1.0, 1 / 3, 1 / 20)
HELPFUL = "hh_helpful_single_turn/train_a.jsonl.gz"
LONGEST_PROMPT = 24


def rollout(data: Path, chat: ChatFormat, replies: int, tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and replies, of which every fifth ends by itself."""
    prompts: list[list[int]] = []
    found: list[list[int]] = []
    with gzip.open(data / HELPFUL, "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = json.loads(line)["chosen"].split("\n\nAssistant:")
            if len(turns) != 2 or turns[0].count("\n\nHuman:") != 1:
                continue
            question, answer = turns[0].removeprefix("\n\nHuman:").strip(), turns[1].strip()
            prompt = chat.encode([{"role": "user", "content": question}], reply=True)
            reply = chat.encode_reply(answer)
            ends = len(found) % 5 == 4
            if len(prompt) > LONGEST_PROMPT or (len(reply) >= tokens) == ends:
                continue
            prompts.append(prompt)
            found.append([*reply, chat.eos_id] if ends else reply[:tokens])
            if len(found) == replies:
                return prompts, found
    raise SystemExit(f"{data / HELPFUL} has only {len(found)} such dialogues of {replies}")


class FirstStep:
    """A model with one gradient of PPO's loss, and Adam's first step from it, to take and to undo."""

    def __init__(self, folder: Path, data: Path, replies: int, tokens: int) -> None:
        chat = ChatFormat.load(folder)
        self.model = load_causal_lm(folder)
        self.policy, self.end = Policy(self.model), chat.eos_id
        prompts, found = rollout(data, chat, replies, tokens)

        def chunk(rows: range) -> ReplyChunk:
            (laid_out,) = reply_chunks(prompts, found, rows, width=tokens + 1, pad_id=chat.pad_id,
                                       chunk_tokens=10**6, chunk_cost=10**6)  # fmt: skip
            return laid_out

        whole = chunk(range(replies))
        noise = 0.3 * torch.randn(replies, generator=torch.Generator().manual_seed(1))
        scores = noise - torch.tensor([float(reply[-1] == self.end) for reply in found])
        advantages = whiten(scores[whole.places // (tokens + 1)])
        _, logits = self.policy.states_and_logits(whole)
        logps, _ = selected_logps(logits, whole.targets)
        (-(advantages * torch.exp(logps - logps.detach())).mean()).backward()
        self.norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM))
        self.seen = chunk(range(5))
        self.before = self._logps()

    @torch.no_grad()
    def _logps(self) -> Tensor:
        return torch.log_softmax(self.policy.states_and_logits(self.seen)[1].float(), dim=-1)

    @torch.no_grad()
    def _step(self, part: Callable[[str], bool], rate: float) -> None:
        for name, weight in self.model.named_parameters():
            if weight.grad is not None and part(name):
                weight.add_(weight.grad / (weight.grad.abs() + ADAM_EPS), alpha=-rate)

    def moved(self, part: Callable[[str], bool], rate: float) -> dict[str, float]:
        """How far the step moves the log-probs, in nats; the weights are as before afterwards."""
        self._step(part, rate)
        change = self._logps() - self.before
        self._step(part, -rate)
        taken = change.gather(1, self.seen.targets[:, None])[:, 0]
        ends = self.seen.targets == self.end
        return {
            "tokens": float(taken.abs().mean()),
            "approximate_kl": float(0.5 * (taken**2).mean()),
            "end": float(change[:, self.end].mean()),
            "end_most": float(change[:, self.end].abs().max()),
            "end_where_it_stood": float(change[ends, self.end].mean()),
        }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--replies", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = FirstStep(args.folder, Path(os.environ["ORCHESTRATOR_DATA"]), args.replies, args.tokens)
    table: Any = found.model.get_input_embeddings().weight
    embedding = next(name for name, weight in found.model.named_parameters() if weight is table)
    print(f"gradient norm {found.norm:.1f}, clipped to {MAX_GRADIENT_NORM:g}\n")
    print("| step of | rate | |Δ log p| of a token | 0.5·(Δ log p)² | end token, mean | most | where it stood |")
    print("|---|---|---|---|---|---|---|")
    lines: list[tuple[str, Callable[[str], bool], float]] = [
        (f"all weights, {share:.2g} of the rate", lambda _: True, share * RATE) for share in SHARES
    ]
    lines += [
        ("the embedding alone", lambda name: name == embedding, RATE),
        ("everything else", lambda name: name != embedding, RATE),
    ]
    for title, part, rate in lines:
        numbers = found.moved(part, rate)
        print(
            f"| {title} | {rate:.2g} | " + " | ".join(f"{number:.3g}" for number in numbers.values()) + " |", flush=True
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
