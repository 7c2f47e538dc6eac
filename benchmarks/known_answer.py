"""A world whose best policy is known exactly: two prompts, replies of a few tokens, every reply has a reward by table.

    python -m benchmarks.known_answer [--seeds 4]

prints how far from that policy training ends, for every coefficient and seed; a seed draws the initial policy and the
run's random numbers. Exits with 1 where one ends farther than 0.02 nats.

Among all policies the one that maximises E[reward] - kl_coef * KL is pi*(y|x) proportional to
pi_0(y|x) * exp(r(x, y) / kl_coef), and with eleven tokens it can be written down by enumeration. The job that trains is
the product's own (`PolicyTraining`); the table stands in for the preference model. Used by
tests/models/policy/test_ppo_known_answer.py and benchmarks/ppo_ablations.py.

Source: Korbak et al. 2022, arXiv:2205.11275, §3 (the optimum as a posterior).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.chat.format import ChatFormat
from models.chat.tokenizer import END, PAD, ROLES, SCORE, default_template, write_chat_files
from models.model_folders.loading import load_causal_lm
from models.model_folders.saving import save_model
from models.policy import training as training_module
from models.policy.settings import PPOSettings, WatchSettings
from models.runtime.job import Job

LETTERS = "abcde"
PROMPTS = ("a", "b")
VALUES = {"a": (1.0, 0.3, -0.5, 0.6, 0.0), "b": (-0.4, 0.2, 1.0, 0.0, 0.7)}
# As it is trained here: rollouts are large, so that noise is small, and the rate is halved as the answer comes near.
# Advantages are not whitened: at the optimum they all are zero, and whitening would blow up what noise is left.
SETTINGS: dict[str, Any] = {
    "max_reply_tokens": 2,
    "prompts_per_iteration": 512,
    "minibatch_replies": 512,
    "iterations": 32,
    "epochs": 4,
    "learning_rate": 4e-3,
    "halve_every_samples": 5000,
    "gae_lambda": 1.0,
    "whiten_advantages": False,
    "checkpoint_every": 1000,
    # Of two prompts and replies of two tokens nearly all are cut off and equal another one, the best policy's too.
    "watch": WatchSettings(max_truncation_rise=0, max_duplicate_rise=0, max_repetition_rise=0),
}


# By coefficient: the lower it is the farther the best policy is, and the longer the way.
RUNS: dict[float, dict[str, Any]] = {0.1: {"iterations": 48, "halve_every_samples": 6000}, 0.3: {}, 1.0: {}}
NEAR_NATS = 0.02
LONGEST = 2


def write_world(folder: Path, seed: int = 0, *, max_position_embeddings: int = 32) -> Path:
    """An untrained policy of eleven tokens, and a prompt set of two prompts; gives back the folder."""
    vocab = {token: number for number, token in enumerate([PAD, END, SCORE, *ROLES, *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, END, SCORE, *ROLES])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = default_template(END)
    chat = write_chat_files(fast, folder / "chat")
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=max_position_embeddings,
        initializer_range=0.1,
    )
    torch.manual_seed(seed)
    (folder / "initial").mkdir(parents=True)
    save_model(LlamaForCausalLM(config), folder / "initial", chat, "An untrained policy of eleven tokens.")
    (folder / "prompts").mkdir()
    with (folder / "prompts" / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for text in PROMPTS:
            messages = [{"role": "user", "content": text}]
            record = {"id": text, "kind": "helpful", "split": "train", "messages": messages}
            file.write(json.dumps(record) + "\n")
    return folder


class KnownReward:
    """In place of the preference model: a number for each prompt and reply text, fixed for ever."""

    def __init__(self, initial: Path) -> None:
        self.chat = ChatFormat.load(initial)
        self.max_tokens = math.inf
        self.model = load_causal_lm(initial)  # PolicyTraining looks at its size, and at its trunk if asked to
        asked = self.chat.encode([{"role": "user", "content": "a"}], reply=True)
        self._roles = {asked[0], asked[-1]}
        self._rewards: dict[tuple[int, ...], float] = {}

    def reward(self, prompt: str, text: str) -> float:
        """Letters earn by prompt, the first more than the second, and a letter said twice costs."""
        earned = sum(
            share * VALUES[prompt][LETTERS.index(letter)] for share, letter in zip((0.5, 0.3), text, strict=False)
        )
        return earned - 0.2 * (len(set(text)) < len(text))

    def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """As `PreferenceModel.score_sequences`."""
        for ids in map(tuple, sequences):
            if ids not in self._rewards:
                assert ids[-1] == self.chat.score_id, "scored elsewhere than at the end of the context"
                user, reply = (place for place, token in enumerate(ids) if token in self._roles)
                self._rewards[ids] = self.reward(self.chat.decode(ids[user:reply]), self.chat.decode(ids[reply:]))
        return [self._rewards[tuple(ids)] for ids in sequences]


def all_replies(chat: ChatFormat, vocabulary: int, longest: int) -> Iterator[list[int]]:
    """Every reply that can be drawn: any tokens, closed by the end-of-turn id or cut at `longest` tokens."""

    def grow(ids: list[int]) -> Iterator[list[int]]:
        for token in range(vocabulary):
            reply = [*ids, token]
            if token == chat.eos_id or len(reply) == longest:
                yield reply
            else:
                yield from grow(reply)

    return grow([])


@torch.no_grad()
def reply_logps(model: Any, prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> Tensor:
    """Log-prob of each whole reply, (n,), by the model's plain forward."""
    width = max(map(len, replies))
    ids = torch.tensor([[*prompt, *reply, *[0] * (width - len(reply))] for reply in replies])
    logps = torch.log_softmax(model(input_ids=ids).logits.double(), dim=-1)[:, len(prompt) - 1 : -1]
    each = logps.gather(2, ids[:, len(prompt) :, None])[:, :, 0]
    real = torch.arange(width)[None] < torch.tensor([len(reply) for reply in replies])[:, None]
    return (each * real).sum(dim=1)


def distance_from_optimum(world: Path, policy: Path | Any, kl_coef: float, longest: int) -> float:
    """KL(pi*, pi) in nats per reply, the mean over the prompts; 0 where the policy is the best one."""
    chat, known = ChatFormat.load(world / "initial"), KnownReward(world / "initial")
    initial = load_causal_lm(world / "initial")
    model = load_causal_lm(policy) if isinstance(policy, Path) else policy
    replies = list(all_replies(chat, initial.config.vocab_size, longest))
    distances = []
    for text in PROMPTS:
        prompt = chat.encode([{"role": "user", "content": text}], reply=True)
        rewards = torch.tensor([known.reward(text, chat.decode(reply)) for reply in replies], dtype=torch.float64)
        before = reply_logps(initial, prompt, replies)
        best = torch.log_softmax(before + rewards / kl_coef, dim=0)
        distances.append(float((best.exp() * (best - reply_logps(model, prompt, replies))).sum()))
    return sum(distances) / len(distances)


def train(
    world: Path,
    out: Path,
    settings: dict[str, Any],
    seed: int = 0,
    change: Callable[[training_module.PolicyTraining], None] | None = None,
) -> training_module.PolicyTraining:
    """Run PPO's own loop with the table as preference model; `change` may tamper with it before it starts."""
    return train_on(world, out, SETTINGS | settings, KnownReward(world / "initial"), seed, change)


def train_on(
    world: Path,
    out: Path,
    settings: dict[str, Any],
    known: KnownReward,
    seed: int = 0,
    change: Callable[[training_module.PolicyTraining], None] | None = None,
) -> training_module.PolicyTraining:
    """The same with another table, by these settings alone."""
    out.mkdir(parents=True)
    inputs = {name: str(world / name) for name in ("initial", "prompts")} | {"preference_model": str(world / "initial")}
    job = Job({"job": "train_policy", "inputs": inputs, "settings": settings, "seed": seed, "device": "cpu"}, out)
    job.prepare_process()
    training = training_module.PolicyTraining(job, PPOSettings(**settings), known.chat, preference_model=known)
    if change is not None:
        change(training)
    training.run()
    return training


def main() -> int:
    """Print the table; 1 where a run ends too far away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    farthest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worlds = [write_world(folder / f"world-{seed}", seed) for seed in range(args.seeds)]
        print("| λ | " + " | ".join(f"seed {seed}: before, after" for seed in range(args.seeds)) + " |")
        print("|---" * (args.seeds + 1) + "|")
        for kl_coef, settings in RUNS.items():
            cells = []
            for seed, world in enumerate(worlds):
                training = train(world, folder / f"{kl_coef}-{seed}", {"kl_coef": kl_coef} | settings, seed)
                before, after = (
                    distance_from_optimum(world, policy, kl_coef, LONGEST)
                    for policy in (world / "initial", training.policy.model)
                )
                farthest = max(farthest, after)
                cells.append(f"{before:.3f}, {after:.3f}")
            print(f"| {kl_coef} | {' | '.join(cells)} |", flush=True)
    print(f"farthest: {farthest:.3f} nats, limit {NEAR_NATS}: {'met' if farthest < NEAR_NATS else 'MISSED'}")
    return int(farthest >= NEAR_NATS)


if __name__ == "__main__":
    sys.exit(main())
