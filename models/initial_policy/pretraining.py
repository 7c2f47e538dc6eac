"""Pretraining of a small policy from scratch on dialogues: pieces, schedule, loss.

`models/jobs/pretrain.py` is the process around it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from models.chat.format import ChatFormat, Message
from models.initial_policy.settings import PretrainSettings
from models.runtime.job import Job

# Rows of one forward pass; more gains no speed on CPU and mixes fewer lengths into a step.
CHUNK_TOKENS = 2048


def split_pieces(
    dialogues: list[list[Message]], chat: ChatFormat, settings: PretrainSettings
) -> tuple[list[list[int]], list[list[int]]]:
    """(training, held-out) id sequences of 2 to max_tokens ids.

    A dialogue is held out by the digest of its text, so copies of one dialogue fall on the same side.
    """
    parts: tuple[list[list[int]], list[list[int]]] = ([], [])
    for messages in dialogues:
        key = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).digest()
        held_out = int.from_bytes(key[:8], "big") / 2**64 < settings.held_out_fraction
        ids = chat.encode(messages)
        pieces = (ids[i : i + settings.max_tokens] for i in range(0, len(ids), settings.max_tokens))
        parts[held_out].extend(piece for piece in pieces if len(piece) > 1)
    return parts


def shape(settings: PretrainSettings, vocab_size: int, eos_id: int, pad_id: int) -> LlamaConfig:
    """The configuration of the model that is pretrained."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=settings.max_tokens,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        dtype="float32",
    )


def build_model(settings: PretrainSettings, chat: ChatFormat, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights drawn from the seed alone."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(shape(settings, chat.vocab_size, chat.eos_id, chat.pad_id))


def epoch_steps(sequences: list[list[int]], settings: PretrainSettings, seed: int, epoch: int) -> list[list[list[int]]]:
    """The optimiser steps of one epoch: each a list of chunks, each chunk a list of sequence indices.

    Every sequence occurs once. The order is a function of (seed, epoch) alone, which exact resume rests on.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(sequences), generator=generator).tolist()
    by_length = sorted(shuffled, key=lambda index: len(sequences[index]))
    chunks: list[list[int]] = []
    for index in by_length:
        # Ascending lengths: this sequence is the widest row of its chunk so far.
        if not chunks or (len(chunks[-1]) + 1) * len(sequences[index]) > min(CHUNK_TOKENS, settings.batch_tokens):
            chunks.append([])
        chunks[-1].append(index)
    steps: list[list[list[int]]] = [[]]
    tokens = 0
    for position in torch.randperm(len(chunks), generator=generator).tolist():
        size = sum(len(sequences[index]) for index in chunks[position])
        if steps[-1] and tokens + size > settings.batch_tokens:
            steps.append([])
            tokens = 0
        steps[-1].append(chunks[position])
        tokens += size
    return [step for step in steps if step]


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then linear decay to 0 at the end; `step` counts from 0."""
    warmup = max(1, round(warmup_fraction * steps))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / max(1, steps - warmup)


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and other vectors don't."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _resume(job: Job, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, list[float]]:
    """(step to begin with, loss of every step before it)."""
    checkpoint = job.load_checkpoint()
    if checkpoint is None:
        return 0, []
    step, state = checkpoint
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return step, state["losses"]


def _train(
    job: Job,
    settings: PretrainSettings,
    model: LlamaForCausalLM,
    optimiser: torch.optim.Optimizer,
    sequences: list[list[int]],
    plan: list[list[list[int]]],
    first: int,
    losses: list[float],
) -> None:
    """Run the plan from step `first` on; appends the loss of every step to `losses`."""
    model.train()
    started_s, seen = time.monotonic(), 0
    for step in range(first, len(plan)):
        rate = settings.learning_rate * learning_rate_factor(step, len(plan), settings.warmup_fraction)
        for group in optimiser.param_groups:
            group["lr"] = rate
        num_targets = sum(len(sequences[index]) - 1 for chunk in plan[step] for index in chunk)
        loss = 0.0
        for ids, target_mask in _tensors(sequences, plan[step], job.device):
            chunk_loss = _summed_loss(model, ids, target_mask) / num_targets
            chunk_loss.backward()
            loss += chunk_loss.item()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss)
        seen += num_targets
        done = step + 1
        job.log(done, loss=loss, learning_rate=rate, grad_norm=grad_norm.item(), tokens=num_targets)
        job.progress(done, len(plan), "pretrain")
        if job.checkpoint_due(done, len(plan), settings.checkpoint_every, settings.checkpoint_time_share):
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "losses": losses}
            job.save_checkpoint(done, state)
    if seen:
        job.facts["tokens_per_s"] = round(seen / (time.monotonic() - started_s))


def _tensors(
    sequences: list[list[int]], chunks: list[list[int]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids (B, T), target_mask (B, T - 1)) of each chunk, padded on the right with id 0.

    Causal attention never looks right, so real tokens don't see the padding and no attention mask is needed.
    """
    for chunk in chunks:
        width = max(len(sequences[index]) for index in chunk)
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        mask = torch.zeros(len(chunk), width - 1, dtype=torch.bool)
        for row, index in enumerate(chunk):
            length = len(sequences[index])
            ids[row, :length] = torch.tensor(sequences[index])
            mask[row, : length - 1] = True
        yield ids.to(device), mask.to(device)


def _summed_loss(model: LlamaForCausalLM, ids: torch.Tensor, target_mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats summed over the targets that count."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[target_mask])
    return F.cross_entropy(logits, ids[:, 1:][target_mask], reduction="sum")


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, sequences: list[list[int]], device: torch.device) -> float:
    """Cross-entropy in nats per token of sequences, in evaluation mode."""
    model.eval()
    by_length = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    chunks = [by_length[i : i + 32] for i in range(0, len(by_length), 32)]
    total = math.fsum(_summed_loss(model, *tensors).item() for tensors in _tensors(sequences, chunks, device))
    return total / sum(len(ids) - 1 for ids in sequences)
