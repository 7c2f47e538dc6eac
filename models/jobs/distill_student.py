"""Job: train a student on a distillation set, so that it says without the prompt what the teacher says after it.

    python -m models.jobs.distill_student --spec spec.json --out DIR
    {"job": "distill_student", "inputs": {"student": "...", "distillation_set": "..."}, "settings": {}}

The loss is the KL from the teacher over its 50 likeliest tokens and the rest together, per token. The result is an
initial policy; its curve of KL against tokens is in results.json.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from models.backbone.output_layer import OutputLayerUnknown, check_output_layer
from models.backbone.precision import multiplying_in, note_precision
from models.chat.format import ChatFormat, ChatFormatError
from models.initial_policy.distillation import (
    HELD_OUT_FILE,
    DistillationError,
    Manifest,
    Shard,
    same_tokenizer,
)
from models.initial_policy.results import DistillationPoint, DistilledResults
from models.initial_policy.settings import DistillSettings
from models.initial_policy.student_training import (
    CURVE_POINTS,
    Shards,
    gradients,
    held_out_kl,
    steps_of,
)
from models.model_folders.loading import load_causal_lm
from models.model_folders.saving import model_card, save_model
from models.runtime.job import Job, JobError, main
from models.runtime.results import part_to_json, result_to_json
from models.runtime.settings import settings_from

NAME = "distill_student"

CARD = """The fixed start of every cycle: PPO begins here, its frozen copy is the KL reference, and preference
models start from its trunk. Distilled: it says without the prompt what its teacher says after it."""


def run(job: Job) -> None:
    """Train on every shard, resuming where an earlier start was killed, and publish the initial policy.

    Raises:
        JobError: a student with another tokenizer than the set's, or a folder that is no distillation set.
    """
    settings = settings_from(DistillSettings, job.settings)
    folder, student = job.input("distillation_set"), job.input("student")
    manifest, chat, held_out = _load(folder, student)
    note_precision(settings.precision, job.device)
    model: Any = load_causal_lm(student, device=job.device)
    try:
        check_output_layer(model, "Distillation")
    except OutputLayerUnknown as error:
        raise JobError(str(error)) from error
    plan = steps_of(manifest, settings, job.seed)
    state = _train(job, settings, model, Shards(folder), plan, held_out)
    results = DistilledResults(
        prompt_version=manifest.prompt_version,
        optimiser_steps=len(plan),
        num_tokens=state["tokens"],
        held_out_texts=manifest.held_out,
        held_out_kl_before=state["curve"][0][1],
        held_out_kl_after=state["curve"][-1][1],
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=chat.vocab_size,
        distillation_curve=tuple(
            DistillationPoint(tokens=tokens, held_out_kl_nats=kl, train_kl_nats=train)
            for tokens, kl, train in state["curve"]
        ),
    )

    def write(out: Path) -> None:
        facts = part_to_json(results)
        del facts["distillation_curve"]
        save_model(model, out, chat, model_card("Initial policy", CARD, facts, tags=("initial-policy", "distilled")))

    job.publish(write, result_to_json(results))


def _load(folder: Path, student: Path) -> tuple[Manifest, ChatFormat, Shard]:
    """The set's manifest, the student's chat format, and the texts that are never trained on."""
    try:
        manifest, chat = Manifest.load(folder), ChatFormat.load(student)
        held_out = Shard.load(folder / HELD_OUT_FILE)
    except (DistillationError, ChatFormatError, OSError) as error:
        raise JobError(str(error)) from error
    if not same_tokenizer(student, folder):
        raise JobError(
            f"The student {student.name} has another tokenizer or chat template than the distillation set, whose ids "
            "would mean other words to it. Take a teacher with the student's tokenizer."
        )
    return manifest, chat, held_out


class Trained(TypedDict):
    """What a checkpoint holds beside weights and optimiser."""

    step: int
    tokens: int
    curve: list[tuple[int, float, float | None]]
    """Tokens, KL of the held-out texts, and mean KL of training since the point before, nats per token."""
    recent: NotRequired[list[float]]
    """KLs of the steps since the last point."""


def _train(
    job: Job, settings: DistillSettings, model: Any, shards: Shards, plan: Sequence[tuple[int, Any]], held_out: Shard
) -> Trained:
    """Take the steps of the plan that are left."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    every = max(1, len(plan) // (CURVE_POINTS - 1))
    state: Trained = {"step": 0, "tokens": 0, "curve": []}
    checkpoint = job.load_checkpoint()
    if checkpoint is not None:
        model.load_state_dict(checkpoint[1]["model"])
        optimiser.load_state_dict(checkpoint[1]["optimiser"])
        state = checkpoint[1]["state"]
    else:
        state["curve"].append((0, held_out_kl(model, held_out, job.device), None))
        job.log(0, tokens=0, held_out_kl_nats=state["curve"][0][1])
    started_s, seen = time.monotonic(), 0
    recent: list[float] = list(state.get("recent", []))
    for step in range(state["step"], len(plan)):
        rate = settings.reference_learning_rate * settings.learning_rate_multiple * (1 - step / len(plan))
        for group in optimiser.param_groups:
            group["lr"] = rate
        number, rows = plan[step]
        with multiplying_in(settings.precision, job.device):
            kl, tokens = gradients(model, shards[number], rows, job.device, settings.precision)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seen += tokens
        recent.append(kl)
        done = step + 1
        state["step"], state["tokens"] = done, state["tokens"] + tokens
        line: dict[str, float] = {"kl_nats": kl, "learning_rate": rate, "grad_norm": grad_norm.item()}
        if done % every == 0 or done == len(plan):
            line["held_out_kl_nats"] = held_out_kl(model, held_out, job.device)
            state["curve"].append((state["tokens"], line["held_out_kl_nats"], sum(recent) / len(recent)))
            recent = []
        job.log(done, tokens=state["tokens"], **line)
        job.progress(done, len(plan), "distil")
        if job.checkpoint_due(done, len(plan), settings.checkpoint_every, settings.checkpoint_time_share):
            kept = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            job.save_checkpoint(done, kept | {"state": {**state, "recent": recent}})
    if seen:
        job.facts["tokens_per_s"] = round(seen / (time.monotonic() - started_s))
    return state


if __name__ == "__main__":
    main(NAME, run)
