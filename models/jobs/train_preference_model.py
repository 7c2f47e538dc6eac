"""Job: train a preference model on a comparison set, from the initial policy's trunk and a fresh scalar head.

Inputs: `initial` (prepared policy) and `comparisons` (comparison set). Optional: `skills` (a comparison set mixed in),
`pmp` (a preference model whose trunk is the start), `reference` (the set over which the offset is measured), and for a
watcher `production`, the model whose twin it is. The result is a Hugging Face folder for
`AutoModelForSequenceClassification` with the held-out report in results.json and every held-out score beside it.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from models.adapters import (
    AdapterError,
    Lora,
    adapted_names,
    add_adapter,
    check_lora,
    digest_of_base,
    learned_state,
    lora_of,
    merged,
    restore,
    save_adapter,
)
from models.chat import ChatFormat
from models.comparison_data import SPLITS, ComparisonSetError, TokenPair, TokenPairs, load_token_pairs
from models.huggingface import model_card, save_model
from models.jobs.policy_inputs import check_same_chat
from models.jobs.runtime import Job, JobError, main, settings_from
from models.pair_file import PairFile
from models.precision import Precision, computing_in, note_precision
from models.preference import (
    CHUNK_TOKENS_CPU,
    CHUNK_TOKENS_GPU,
    PreferenceModel,
    can_pack,
    fresh_preference_model,
    pair_scores,
    scalar_head,
    tree_scores,
)
from models.preference_batches import chunks_by_length, dialogue_order, epoch_order, shuffle_labels
from models.preference_lm import frozen_output_layer, good_sample_loss
from models.preference_loss import preference_loss, question_weights
from models.preference_offset import measure_offset
from models.preference_report import ScoredPair, held_out_report, score_pairs
from models.preference_targets import SOFT_TARGET_UNKNOWN, SOFT_TARGETS, check_targets, soft_targets
from models.preference_trees import chunks_by_tokens, pair_trees
from models.scaling import learning_curve
from models.twins import Part, Twin, cost_of_a_part, gaps_of, part_of

NAME = "train_preference_model"
ADAM_BETAS = (0.9, 0.98)
ADAM_EPS = 1e-8
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class PreferenceModelSettings:
    """How the preference model is trained. One epoch is the paper's choice, against overfitting."""

    learning_rate: float = 1e-3
    batch_pairs: int = 32
    batch_order: Literal["pairs", "dialogues"] = "pairs"  # what is shuffled; dialogues share more tokens in a batch
    epochs: int = 1
    max_tokens: int = 1024
    warmup_fraction: float = 0.05
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = 0.0
    harmless_weight: float = 1.0
    targets: Literal["hard", "soft"] = "hard"
    soft_targets: tuple[float, ...] = SOFT_TARGETS  # by strength 1 to 4
    soft_target_unknown: float = SOFT_TARGET_UNKNOWN
    lm_coef: float = 0.0
    lora_rank: int = 0  # 0: all weights are trained; otherwise adapters of this rank and the head
    lora_alpha: float = 16.0  # an adapter's output is scaled by lora_alpha / lora_rank
    lora_layers: tuple[str, ...] = ()  # linear layers with an adapter; none named: all of attention and MLP
    precision: Precision = "float32"  # of training; weights stay float32, and the report is computed in it
    shuffle_labels: bool = False
    twin: Twin = "off"  # whether the training part is shared between this model and a watcher
    part: Part = "production"  # which of the two this is
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("batch_pairs", "epochs", "max_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("learning_rate", "weight_decay", "harmless_weight", "lm_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}; expected a share of the steps, 0 to 1.")
        check_lora(self)
        check_targets(self.soft_targets, self.soft_target_unknown)
        if self.part == "watcher" and self.twin == "off":
            raise ValueError("part is 'watcher' and twin is 'off'; a watcher needs twin = 'halves' or 'holdout'.")


def run(job: Job) -> None:
    """Train, score the held-out comparisons, publish.

    Raises:
        JobError: a split is empty, the comparison set is not what its manifest says, or adapters are asked for that
            can't be made.
    """
    settings = settings_from(PreferenceModelSettings, job.settings)
    lora = _lora(settings)
    initial = job.input("initial")
    chat = ChatFormat.load(initial)
    start = job.inputs.get("pmp", initial)
    check_same_chat(start, initial, "pre-trained preference model")
    model = fresh_preference_model(start, chat, job.seed, job.device)
    base_sha256 = None if lora is None else _train_adapter_only(model, lora, job.seed)
    max_tokens = min(settings.max_tokens, getattr(model.config, "max_position_embeddings", settings.max_tokens))
    splits, left_out, num_judged = _load(job, chat, max_tokens, settings)
    train, held_out = splits["train"].pairs, splits["held_out"].pairs
    if settings.shuffle_labels:
        train = shuffle_labels(train, job.seed)

    training = Training(job, settings, model, chat, train)
    train_loss = training.run()

    job.progress(training.num_steps, training.num_steps, "evaluate")
    trained = model.eval()
    if lora is not None:
        # What is judged below is what is published.
        model = merged(trained)
    preference_model = PreferenceModel(model, chat)
    # A skill that is learned well must not hide that the raters' own comparisons are not.
    scored, skills = (
        score_pairs(preference_model, [held_out[i] for i in part if held_out[i].tie is None])
        for part in (range(num_judged), range(num_judged, len(held_out)))
    )
    results: dict[str, Any] = {
        "num_train": len(train),
        "num_held_out": len(scored),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_on": trained_on(train, settings.harmless_weight),
        "dropped_too_long": splits["train"].num_too_long + splits["held_out"].num_too_long,
        "dropped_too_long_by_split": {name: split.num_too_long for name, split in splits.items()},
        "max_tokens": max_tokens,
        "optimiser_steps": training.num_steps,
        "train_loss": train_loss,
        "learning_curve": learning_curve(steps_of(job.out / "metrics.jsonl"), len(train), settings.batch_pairs),
        "held_out": held_out_report(scored),
        **({"skills": held_out_report(skills)} if skills else {}),
        "choices": choices(job, settings, model, max_tokens),
        **_offset(job, preference_model, max_tokens),
        **_ties(preference_model, train, held_out, left_out),
    }
    if lora is not None:
        results["lora"] = _lora_results(lora, trained)
        results["choices"]["trained"] = f"adapters of rank {lora.rank} and the head, the rest frozen"
    if settings.twin != "off":
        results["twin"] = _twin_results(job, settings, len(train), scored)

    def write(directory: Path) -> None:
        save_model(model, directory, chat, card(results, settings))
        if lora is not None and base_sha256 is not None:
            save_adapter(trained, directory, "SEQ_CLS", lora, base_sha256)
        for name, pairs in (("held_out", scored), ("skill", skills)):
            if pairs or name == "held_out":
                with (directory / f"{name}_scores.jsonl").open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(pair.as_json()) + "\n" for pair in pairs)

    job.publish(write, results)


def _lora(settings: PreferenceModelSettings) -> Lora | None:
    try:
        return lora_of(settings)
    except AdapterError as error:
        raise JobError(str(error)) from error


def _train_adapter_only(model: Any, lora: Lora, seed: int) -> str:
    """Freeze all but an adapter and the score head; gives the digest of the frozen trunk."""
    base_sha256 = digest_of_base(model.base_model)
    try:
        add_adapter(model, lora, seed)
    except AdapterError as error:
        raise JobError(str(error)) from error
    scalar_head(model).requires_grad_(True)
    return base_sha256


def _lora_results(lora: Lora, model: Any) -> dict[str, Any]:
    return {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "layers": adapted_names(model),
        "trained_parameters": sum(tensor.numel() for tensor in learned_state(model).values()),
    }


def trained_on(pairs: Sequence[TokenPair], harmless_weight: float) -> list[str]:
    """The questions that moved the weights; harmless pairs with weight 0 did not."""
    return sorted({pair.question for pair in pairs} - ({"harmless"} if harmless_weight == 0 else set()))


def steps_of(metrics: Path) -> list[tuple[int, float]]:
    """Step and accuracy before the step of every line of metrics.jsonl that has one."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["accuracy"]) for line in lines if line.get("accuracy") is not None]


def _load(
    job: Job, chat: ChatFormat, max_tokens: int, settings: PreferenceModelSettings
) -> tuple[dict[str, TokenPairs], Counter[str], int]:
    """The pairs of all comparison sets by split, how many were left out on purpose, by reason, and how many of the
    held-out ones, the first, are the comparison set's own and no skill's."""
    left_out: Counter[str] = Counter()

    def wanted(record: dict[str, Any]) -> bool:
        if record["split"] == "held_out":
            return True
        if record.get("tie") and settings.targets == "hard":
            left_out["ties"] += 1
            return False
        if settings.twin == "off":
            return True
        if not record.get("split_key"):
            raise ComparisonSetError(
                f"Comparison {record['id']} has no split_key, by which twin = {settings.twin!r} splits. Freeze anew."
            )
        return part_of(record["split_key"], settings.twin) == settings.part

    # On disk, so that memory does not grow with the comparisons.
    splits = {name: TokenPairs(PairFile(job.out, TokenPair)) for name in SPLITS}

    def read(role: str) -> None:
        try:
            load_token_pairs(job.input(role), chat, max_tokens, wanted, splits)
        except ComparisonSetError as error:
            raise JobError(str(error)) from error

    read("comparisons")
    for name, split in splits.items():
        if not any(pair.tie is None for pair in split.pairs):
            raise JobError(
                f"{job.input('comparisons')} has 0 {name.replace('_', '-')} comparisons of at most {max_tokens} tokens "
                f"({split.num_too_long} are longer); training needs both splits. "
                "Collect more, raise max_tokens, or hold out a larger share."
            )
    num_judged = len(splits["held_out"].pairs)
    if "skills" in job.inputs:
        read("skills")
    return splits, left_out, num_judged


def _offset(job: Job, model: PreferenceModel, max_tokens: int) -> dict[str, Any]:
    """The model's mean score over the reference set, where there is one."""
    if "reference" not in job.inputs:
        return {"offset": None, "reference": None}
    try:
        measured = measure_offset(model, job.input("reference"), max_tokens)
    except ComparisonSetError as error:
        raise JobError(str(error)) from error
    return {"offset": measured.pop("offset"), "reference": measured}


def _ties(
    model: PreferenceModel, train: Sequence[TokenPair], held_out: Sequence[TokenPair], left_out: Counter[str]
) -> dict[str, Any]:
    """What became of ties, where the comparison set holds any; accuracy knows none, so held-out ones get their gap."""
    ties = [pair for pair in held_out if pair.tie is not None]
    num_train = sum(pair.tie is not None for pair in train)
    if not ties and not num_train and not left_out["ties"]:
        return {}
    better, worse = model.score_pairs(ties)
    gaps = [abs(a - b) for a, b in zip(better, worse, strict=True)]
    return {
        "ties": {
            "train": num_train,
            "left_out": left_out["ties"],
            "held_out": len(ties),
            "held_out_mean_abs_gap": math.fsum(gaps) / len(gaps) if gaps else None,
        }
    }


def _twin_results(
    job: Job, settings: PreferenceModelSettings, num_train: int, scored: Sequence[ScoredPair]
) -> dict[str, Any]:
    """Which part this model trained on; for a watcher also how the two compare on what neither has seen."""
    results: dict[str, Any] = {"twin": settings.twin, "part": settings.part}
    if "production" not in job.inputs:
        return results
    production = job.input("production")
    ours = json.loads((production / "results.json").read_text(encoding="utf-8"))
    lines = (production / "held_out_scores.jsonl").read_text(encoding="utf-8").splitlines()
    gaps = gaps_of([json.loads(line) for line in lines])
    try:
        cost = cost_of_a_part(
            gaps,
            {pair.id: pair.gap for pair in scored},
            ours["num_train"],
            num_train,
            {pair.id: pair.dialogue for pair in scored},
        )
    except ValueError as error:
        raise JobError(f"{error} Train both on the same comparison set.") from error
    total = ours["num_train"] + num_train
    return results | {
        "num_production": ours["num_train"],
        "num_watcher": num_train,
        "production_share": ours["num_train"] / total,
        **cost,
    }


class Training:
    """The optimisation loop: steps of `batch_pairs` pairs, resumable after any step that was checkpointed."""

    def __init__(
        self, job: Job, settings: PreferenceModelSettings, model: Any, chat: ChatFormat, pairs: Sequence[TokenPair]
    ) -> None:
        self.job, self.settings, self.model, self.chat, self.pairs = job, settings, model, chat, pairs
        note_precision(settings.precision, job.device)
        try:
            self.weights = question_weights((pair.question for pair in pairs), settings.harmless_weight)
        except ValueError as error:
            raise JobError(str(error)) from error
        self.targets = (
            soft_targets(pairs, settings.soft_targets, settings.soft_target_unknown)
            if settings.targets == "soft"
            else None
        )
        self.output_layer = frozen_output_layer(job.input("initial"), job.device) if settings.lm_coef else None
        self.steps_per_epoch = math.ceil(len(pairs) / settings.batch_pairs)
        self.num_steps = self.steps_per_epoch * settings.epochs
        self.warmup_steps = math.ceil(settings.warmup_fraction * self.num_steps)
        self.chunk_tokens = CHUNK_TOKENS_CPU if job.device.type == "cpu" else CHUNK_TOKENS_GPU
        self.packed = can_pack(model.config)
        self._order: tuple[int, list[int]] | None = None  # of the epoch that is being visited
        self.tokens_computed = 0
        self.optimiser = torch.optim.AdamW(
            parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, betas=ADAM_BETAS, eps=ADAM_EPS
        )

    def run(self) -> float:
        """Mean loss over all steps, each pair judged before the step that learns from it."""
        first_step, loss_sum = self._resume()
        pairs_seen, started_s = 0, time.monotonic()
        for step in range(first_step, self.num_steps):
            batch = self._batch(step)
            loss, accuracy, gradient_norm = self._step(step, batch)
            loss_sum += loss * len(batch)
            pairs_seen += len(batch)
            self.job.log(
                step + 1, loss=loss, accuracy=accuracy, gradient_norm=gradient_norm, learning_rate=self._rate(step)
            )
            self.job.progress(step + 1, self.num_steps, "train")
            if (step + 1) % self.settings.checkpoint_every == 0 and step + 1 < self.num_steps:
                self._checkpoint(step + 1, loss_sum)
        seconds = time.monotonic() - started_s
        self.job.facts |= {
            "train_seconds": round(seconds, 3),
            "pairs_per_second": round(pairs_seen / seconds, 1),
            "tokens_per_second": round(self.tokens_computed / seconds, 1),
        }
        return loss_sum / (len(self.pairs) * self.settings.epochs)

    def _batch(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._epoch_order(epoch)
        order = self._order[1]
        return order[position * self.settings.batch_pairs : (position + 1) * self.settings.batch_pairs]

    def _epoch_order(self, epoch: int) -> list[int]:
        if self.settings.batch_order == "dialogues":
            return dialogue_order([pair.dialogue for pair in self.pairs], self.job.seed, epoch)
        return epoch_order(len(self.pairs), self.job.seed, epoch)

    def _step(self, step: int, batch: list[int]) -> tuple[float, float, float]:
        """One optimiser step; (mean loss, share ordered rightly before the step, gradient norm)."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(step)
        self.optimiser.zero_grad(set_to_none=True)
        total_loss, num_right = 0.0, 0
        for members, better, worse in self._scored_chunks([self.pairs[i] for i in batch]):
            indices = [batch[i] for i in members]
            targets = None if self.targets is None else self.targets[indices].to(better.device)
            loss = preference_loss(better, worse, self.weights[indices].to(better.device), targets)
            if self.output_layer is not None:
                pairs = [self.pairs[i] for i in indices]
                with computing_in(self.settings.precision, self.job.device):
                    good = good_sample_loss(self.model, self.output_layer, pairs, self.chat.pad_id, self.job.device)
                loss = loss + self.settings.lm_coef * good
            share = len(indices) / len(batch)
            (loss * share).backward()
            total_loss += loss.item() * share
            num_right += int((better > worse).sum())
        if not math.isfinite(total_loss):
            raise JobError(
                f"The loss is {total_loss} at step {step + 1} of {self.num_steps}: training diverged. "
                f"Lower learning_rate ({self.settings.learning_rate:g})."
            )
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimiser.step()
        return total_loss, num_right / len(batch), float(norm)

    def _scored_chunks(self, pairs: Sequence[TokenPair]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(indices into the batch, their better and worse scores), a part of the batch at a time."""
        model, device = self.model, self.job.device
        precision = self.settings.precision
        if self.packed:
            trees = pair_trees(pairs, model.config.hidden_size, self.chunk_tokens)
            # Half of it at once is as fast and holds half the activations; a tree may be larger.
            for chunk in chunks_by_tokens(trees, self.chunk_tokens // 2):
                self.tokens_computed += sum(len(tree) for tree in chunk)
                with computing_in(precision, device):
                    scores = tree_scores(model, chunk, device)
                yield [i for tree in chunk for i in tree.pairs], *scores
            return
        lengths = [2 * max(pair.better_tokens, pair.worse_tokens) for pair in pairs]
        for members in chunks_by_length(lengths, self.chunk_tokens):
            self.tokens_computed += len(members) * lengths[members[0]]
            with computing_in(precision, device):
                scores = pair_scores(model, [pairs[i] for i in members], self.chat.pad_id, device)
            yield members, *scores

    def _rate(self, step: int) -> float:
        return self.settings.learning_rate * rate_factor(
            step, self.num_steps, self.warmup_steps, self.settings.lr_schedule
        )

    def _checkpoint(self, step: int, loss_sum: float) -> None:
        self.job.save_checkpoint(
            step,
            {"model": learned_state(self.model), "optimiser": self.optimiser.state_dict(), "loss_sum": loss_sum},
        )

    def _resume(self) -> tuple[int, float]:
        saved = self.job.load_checkpoint()
        if saved is None:
            return 0, 0.0
        step, state = saved
        restore(self.model, state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        return step, state["loss_sum"]


def rate_factor(step: int, num_steps: int, warmup_steps: int, schedule: str) -> float:
    """Share of the full learning rate at a step counted from 0: linear warm-up, then the schedule.

    The linear and the cosine schedule reach 0 one step after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for gains and biases, which it would pull away from the identity."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def choices(job: Job, settings: PreferenceModelSettings, model: Any, max_tokens: int) -> dict[str, Any]:
    """Everything about the training that the paper leaves open or that changes the result, said outright."""
    soft = {"by_strength": list(settings.soft_targets), "unknown_strength": settings.soft_target_unknown, "tie": 0.5}
    return {
        "start": "trunk pre-trained on ranked answers (pmp)" if "pmp" in job.inputs else "initial policy's trunk",
        "head": "one linear unit, normal of variance 1/hidden size from a random stream of its own",
        "score_read_at": "end-of-context id, the last of the sequence",
        "loss": "cross-entropy of sigmoid(score difference), mean over the pairs of a step",
        "targets": soft if settings.targets == "soft" else "hard: 1 for the better reply, ties left out",
        "batch_pairs": settings.batch_pairs,
        "batch_order": settings.batch_order,
        "epochs": settings.epochs,
        "optimiser": "AdamW",
        "betas": list(ADAM_BETAS),
        "eps": ADAM_EPS,
        "weight_decay": f"{settings.weight_decay:g} on matrices, 0 on vectors",
        "max_gradient_norm": MAX_GRADIENT_NORM,
        "learning_rate": settings.learning_rate,
        "lr_schedule": settings.lr_schedule,
        "warmup_fraction": settings.warmup_fraction,
        "context_tokens": max_tokens,
        "longer_pairs": "left out and counted, never cut",
        "empty_replies": "kept: their score is read like any other's",
        "harmless_weight": f"{settings.harmless_weight:g}, weights scaled to mean 1 over the training pairs",
        "lm_coef": settings.lm_coef,
        "lm_loss": "nats per token of the better reply, frozen output layer" if settings.lm_coef else "none",
        "dropout": _dropout(model.config),
        "dtype": "float32",  # of weights, gradients and optimiser state
        "precision": settings.precision,  # of products and attention in training; scores are computed in float32
        "labels": "shuffled (control)" if settings.shuffle_labels else "raters' choices",
        "twin": settings.twin,
        "part": settings.part,
        "skills": "skills" in job.inputs,
    }


def _dropout(config: Any) -> float:
    """The largest dropout that the model's configuration names; families differ in how they call it."""
    names = ("attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop")
    return max((float(getattr(config, name, 0.0) or 0.0) for name in names), default=0.0)


def card(results: dict[str, Any], settings: PreferenceModelSettings) -> str:
    """The README.md of the result: what it is, how to read its score, how good it is."""
    held_out = results["held_out"]
    low, high = held_out["ci"]
    labels = "shuffled labels: a control whose scores mean nothing" if settings.shuffle_labels else "raters' choices"
    text = (
        "Scores a dialogue by how much raters would prefer its last reply. Only differences of scores mean anything: "
        "a difference of 1.0 predicts that the better reply wins 73% of the time. Load it with "
        "`AutoModelForSequenceClassification`; the score is read at the end-of-context id (`score_id` in chat.json), "
        "which must be the last id of the sequence."
    )
    facts = {
        "trained on": f"{results['num_train']} comparisons ({labels})",
        "optimiser steps": results["optimiser_steps"],
        "held-out accuracy": f"{held_out['accuracy']:.3f} (95% interval {low:.3f} to {high:.3f}, n = {held_out['n']})",
        "offset (mean score over the reference set)": "not measured"
        if results["offset"] is None
        else results["offset"],
        **{name.replace("_", " "): value for name, value in results["choices"].items()},
    }
    return model_card("Preference model", text, facts, tags=("preference-model", "reward-model"))


if __name__ == "__main__":
    # The fresh head is reported as a missing weight; here that is the intention.
    transformers_logging.set_verbosity_error()
    main(NAME, run)
