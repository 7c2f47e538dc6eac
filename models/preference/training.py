"""The optimisation loop of a preference model. Run by `models/jobs/train_preference_model.py`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from models.backbone.adapters import learned_state, restore
from models.backbone.batches import chunks_by_length
from models.backbone.precision import computing_in, multiplying_in, note_precision
from models.backbone.recomputation import recompute_activations
from models.chat.format import ChatFormat
from models.preference.language_loss import frozen_output_layer, good_sample_loss
from models.preference.loss import preference_loss, question_weights, soft_targets
from models.preference.model import can_pack, default_chunk_tokens, pair_scores, tree_scores
from models.preference.order import dialogue_order, epoch_order
from models.preference.pairs import TokenPair
from models.preference.settings import ADAM_BETAS, ADAM_EPS, MAX_GRADIENT_NORM, PreferenceModelSettings
from models.preference.tree_attention import TreeAttention
from models.preference.trees import chunks_by_tokens, pair_trees
from models.runtime.job import Job, JobError


class Training:
    """The optimisation loop: steps of `batch_pairs` pairs, resumable after any step that was checkpointed."""

    def __init__(
        self, job: Job, settings: PreferenceModelSettings, model: Any, chat: ChatFormat, pairs: Sequence[TokenPair]
    ) -> None:
        self.job, self.settings, self.model, self.chat, self.pairs = job, settings, model, chat, pairs
        note_precision(settings.precision, job.device)
        try:
            self.weights = question_weights((pair.question for pair in pairs), settings.harmless_weight)
            self.output_layer = frozen_output_layer(job.input("initial"), job.device) if settings.lm_coef else None
            if settings.recompute_activations:
                recompute_activations(model.base_model)
        except ValueError as error:
            raise JobError(str(error)) from error
        self.targets = (
            soft_targets(pairs, settings.soft_targets, settings.soft_target_unknown)
            if settings.targets == "soft"
            else None
        )
        self.steps_per_epoch = math.ceil(len(pairs) / settings.batch_pairs)
        self.num_steps = self.steps_per_epoch * settings.epochs
        self.warmup_steps = math.ceil(settings.warmup_fraction * self.num_steps)
        self.chunk_tokens = settings.forward_tokens or default_chunk_tokens(job.device)
        self.packed = can_pack(model.config)
        self._order: tuple[int, list[int]] | None = None  # of the epoch that is being visited
        self.tokens_computed = 0
        self.optimiser = torch.optim.AdamW(
            parameter_groups(model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPS,
            fused=True,
        )

    def run(self) -> float:
        """Mean loss over all steps, each pair judged before the step that learns from it."""
        with multiplying_in(self.settings.precision, self.job.device):
            return self._run()

    def _run(self) -> float:
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
            every, share = self.settings.checkpoint_every, self.settings.checkpoint_time_share
            if self.job.checkpoint_due(step + 1, self.num_steps, every, share):
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
                    good = good_sample_loss(
                        self.model,
                        self.output_layer,
                        pairs,
                        self.chat.pad_id,
                        self.job.device,
                        self.settings.logits_tokens,
                    )
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
            hidden_size = model.config.hidden_size if TreeAttention.hides(device) else None
            trees = pair_trees(pairs, self.chunk_tokens, hidden_size=hidden_size)
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
