"""How PPO's advantages are best estimated where replies are long: lambda, the critic and its warm-up, leaving one out.

    python -m benchmarks.long_replies [--seeds 10] [--iterations 16] [--only rloo] [--json FILE]

The known-answer world with replies of up to 128 tokens: what a reply earns is known by table, half of it decided by its
first letter (as whether to refuse is), the other half by how often it says the letter that its prompt asks for, and all
of it is paid at its end. Every variant meets the same seeds, of which each draws an initial policy and the run's random
numbers; a rollout has as many replies for all. Printed is the objective score - kl_coef * KL of fresh replies after the
last iteration, and each variant's difference from the first one over the seeds, with its 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.known_answer import LETTERS, PROMPTS, VALUES, KnownReward, reply_logps, train_on, write_world
from models.backbone.trunk import states_at
from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.policy.settings import WatchSettings
from models.runtime.random_numbers import derive_seed
from models.sampling.engine import DecodeEngine, SamplingParams
from models.statistics.intervals import student_quantile

LONGEST = 128
FAVOURITE = {"a": "d", "b": "e"}
REST_WEIGHT = 4.0
"""PM units that a reply earns which says the favourite alone; the first letter earns -0.5 to 1."""
END_LOGIT = -4.0
KL_COEF = 0.02
OFF = WatchSettings(max_truncation_rise=0, max_duplicate_rise=0, max_repetition_rise=0, max_recoveries=0)
BASE: dict[str, Any] = {
    "kl_coef": KL_COEF,
    "max_reply_tokens": LONGEST,
    "prompts_per_iteration": 64,
    "minibatch_replies": 32,
    "epochs": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 8,
    "checkpoint_every": 1000,
    "watch": OFF,
}
RLOO = {"advantage": "rloo", "prompts_per_iteration": 16, "samples_per_prompt": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "lambda 0.95, critic shared": {"gae_lambda": 0.95},
    "lambda 1, critic shared": {"gae_lambda": 1.0},
    "lambda 1, critic shared, 4 iterations of warm-up": {"gae_lambda": 1.0, "critic_warmup_iterations": 4},
    "lambda 0.95, critic from the PM": {"gae_lambda": 0.95, "critic": "preference_model"},
    "lambda 1, critic from the PM": {"gae_lambda": 1.0, "critic": "preference_model"},
    "rloo, 4 replies to a prompt": RLOO,
}
TRUNK_REPLIES, TRUNK_STEPS = 256, 60
JUDGED = 256


class LongReward(KnownReward):
    """What a reply of this world earns."""

    def reward(self, prompt: str, text: str) -> float:
        """The first letter by its value for the prompt, and the prompt's favourite wherever it stands.

        "cd…" to "a": 1.0 * -0.5 for the c, 4.0 / 128 for the d.
        """
        return first_letter(prompt, text) + REST_WEIGHT * text.count(FAVOURITE[prompt]) / LONGEST


def first_letter(prompt: str, text: str) -> float:
    """The part of what a reply earns that its first letter decides."""
    return VALUES[prompt][LETTERS.index(text[0])] if text[:1] and text[0] in LETTERS else 0.0


@dataclass(frozen=True)
class Judged:
    """Fresh replies of a policy: means over them."""

    score: float
    kl_nats: float
    reply_tokens: float
    first: float
    """The part of the score that the first letter decides."""

    @property
    def objective(self) -> float:
        """What PPO maximises."""
        return self.score - KL_COEF * self.kl_nats


def write_long_world(folder: Path, seed: int) -> Path:
    """The world of `known_answer` with room for long replies, and an end that is rare at first."""
    write_world(folder, seed, max_position_embeddings=2 * LONGEST)
    model, chat = load_causal_lm(folder / "initial"), ChatFormat.load(folder / "initial")
    with torch.no_grad():
        # One direction is the same at every place, and only the end reads it: a bias, which Llama's output has none of.
        model.get_input_embeddings().weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        asked = chat.encode([{"role": "user", "content": "a"}], reply=True)
        states = model.base_model(input_ids=torch.tensor([asked])).last_hidden_state[0, -1]
        model.lm_head.weight[chat.eos_id] = 0.0
        model.lm_head.weight[chat.eos_id, 0] = END_LOGIT / states[0]
    model.save_pretrained(folder / "initial")
    return folder


def replies_of(model: Any, known: KnownReward, count: int, seed: int) -> list[tuple[str, list[int], str, list[int]]]:
    """Prompt, its ids, the reply's text and its ids, in turn for both prompts."""
    chat = known.chat
    asked = {text: chat.encode([{"role": "user", "content": text}], reply=True) for text in PROMPTS}
    texts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    engine = DecodeEngine(model, chat.stop_ids, max_slots=count)
    params = [SamplingParams(LONGEST, seed=derive_seed(seed, i)) for i in range(count)]
    completions = engine.generate([asked[text] for text in texts], params)
    return [
        (text, asked[text], chat.decode(completion.ids), completion.ids)
        for text, completion in zip(texts, completions, strict=True)
    ]


def trained_like_a_preference_model(known: LongReward, seed: int) -> None:
    """Let the table's trunk learn the table, as a preference model's has: by regression on the end of replies."""
    model, chat = known.model, known.chat
    head = torch.nn.Linear(model.config.hidden_size, 1)
    with torch.no_grad():
        head.weight.zero_()
    sampled = replies_of(model, known, TRUNK_REPLIES, derive_seed(seed, 99))
    rows = [[*asked, *chat.encode_reply(text), chat.score_id] for _, asked, text, _ in sampled]
    scores = torch.tensor([known.reward(prompt, text) for prompt, _, text, _ in sampled])
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[chat.pad_id] * (width - len(row))] for row in rows])
    ends = torch.tensor([width * place + len(row) - 1 for place, row in enumerate(rows)])
    optimiser = torch.optim.AdamW([*model.base_model.parameters(), *head.parameters()], lr=3e-3, weight_decay=0.0)
    for _ in range(TRUNK_STEPS):
        optimiser.zero_grad()
        found = head(states_at(model.base_model, ids, ends))[:, 0]
        ((found - scores) ** 2).mean().backward()
        optimiser.step()


@torch.no_grad()
def judged(world: Path, model: Any, known: LongReward, seed: int) -> Judged:
    """The policy on fresh replies; log-probs by its plain forward."""
    initial = load_causal_lm(world / "initial")
    sampled = replies_of(model, known, JUDGED, derive_seed(seed, 98))
    kls: list[float] = []
    for prompt in PROMPTS:
        asked = next(ids for text, ids, *_ in sampled if text == prompt)
        replies = [reply for text, _, _, reply in sampled if text == prompt]
        logps, ref_logps = (reply_logps(each, asked, replies) for each in (model, initial))
        kls += (logps - ref_logps).tolist()
    return Judged(
        score=statistics.mean(known.reward(prompt, text) for prompt, _, text, _ in sampled),
        kl_nats=statistics.mean(kls),
        reply_tokens=statistics.mean(len(reply) for *_, reply in sampled),
        first=statistics.mean(first_letter(prompt, text) for prompt, _, text, _ in sampled),
    )


def with_interval(differences: Sequence[float]) -> str:
    """Mean and 95 % interval of paired differences. 1, 2, 3: 2 ± 4.303 / sqrt 3 = 2.48."""
    mean, count = statistics.mean(differences), len(differences)
    if count < 2:
        return f"{mean:+.3f}"
    half = student_quantile(0.95, count - 1) * statistics.stdev(differences) / count**0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def main() -> int:
    """Run the variants seed by seed and print the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="of several runs side by side")
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here after every seed")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="print the table of such files")
    args = parser.parse_args()
    if args.read:
        print(table(*joined(args.read)))
        return 0
    began_s = time.monotonic()
    chosen = {title: change for title, change in VARIANTS.items() if args.only in title}
    found: dict[str, list[Judged]] = {title: [] for title in chosen}
    starts: list[Judged] = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            world = write_long_world(Path(name) / f"world-{seed}", seed)
            starts.append(judged(world, load_causal_lm(world / "initial"), LongReward(world / "initial"), seed))
            for number, (title, change) in enumerate(chosen.items()):
                known = LongReward(world / "initial")
                if change.get("critic") == "preference_model":
                    trained_like_a_preference_model(known, seed)
                told = BASE | {"iterations": args.iterations} | change
                training = train_on(world, Path(name) / f"{number}-{seed}", told, known, seed)
                found[title].append(judged(world, training.policy.model, known, seed))
            print(f"\n{len(starts)} seeds, {time.monotonic() - began_s:.0f} s\n\n{table(starts, found)}", flush=True)
            if args.json:
                # Whole seeds only.
                rows = {title: [vars(each) for each in of_seeds] for title, of_seeds in found.items()}
                args.json.write_text(json.dumps({"start": [vars(each) for each in starts]} | rows, indent=1) + "\n")
    return 0


def joined(files: Sequence[Path]) -> tuple[list[Judged], dict[str, list[Judged]]]:
    """The starts and the runs of several files of numbers."""
    found: dict[str, list[Judged]] = {}
    for file in files:
        for title, rows in json.loads(file.read_text(encoding="utf-8")).items():
            found.setdefault(title, []).extend(Judged(**row) for row in rows)
    return found.pop("start"), found


def table(starts: Sequence[Judged], found: dict[str, list[Judged]]) -> str:
    """Markdown, a row for the start and one for each variant."""
    first = next(iter(found.values()))
    lines = [
        "| variant | score | beyond the first | gained per √nat | objective | beyond the first | KL, nats |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, runs in ({"before training": list(starts)} | found).items():
        score, objective, kl = ([getattr(run, name) for run in runs] for name in ("score", "objective", "kl_nats"))
        gained = [
            (run.score - start.score) / run.kl_nats**0.5 if run.kl_nats > 0 else 0.0
            for run, start in zip(runs, starts, strict=True)
        ]
        beyond = [
            with_interval([mine - getattr(base, name) for mine, base in zip(values, first, strict=True)])
            for name, values in (("score", score), ("objective", objective))
        ]
        lines.append(
            f"| {title} | {statistics.mean(score):.3f} | {beyond[0]} | {statistics.mean(gained):.3f} | "
            f"{statistics.mean(objective):.3f} | {beyond[1]} | {statistics.mean(kl):.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
