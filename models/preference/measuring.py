"""Measures what a trained preference model is published with beside its held-out report: choices, twin, ties, offset.

Called by `models/jobs/train_preference_model.py`, for whose results `models/preference/results.py` has the types.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.backbone.adapters import Lora, adapted_names, learned_state
from models.model_folders.saving import model_card
from models.preference.comparison_set import ComparisonSetError
from models.preference.model import PreferenceModel, measure_offset
from models.preference.pairs import TokenPair
from models.preference.report import ScoredPair
from models.preference.results import (
    ModelSummary,
    PreferenceModelResults,
    Reference,
    Ties,
    TrainedAdapter,
    TwinPart,
    WatcherPart,
)
from models.preference.settings import ADAM_BETAS, ADAM_EPS, MAX_GRADIENT_NORM, PreferenceModelSettings
from models.preference.twins import cost_of_a_part, gaps_of
from models.runtime.job import Job, JobError
from models.runtime.results import ResultError, result_from_json


def trained_on(pairs: Sequence[TokenPair], harmless_weight: float) -> tuple[str, ...]:
    """The questions that moved the weights; harmless pairs with weight 0 did not."""
    return tuple(sorted({pair.question for pair in pairs} - ({"harmless"} if harmless_weight == 0 else set())))


def steps_of(metrics: Path) -> list[tuple[int, float]]:
    """Step and accuracy before the step of every line of metrics.jsonl that has one."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["accuracy"]) for line in lines if line.get("accuracy") is not None]


def trained_adapter(lora: Lora, model: Any) -> TrainedAdapter:
    """The adapter that was trained."""
    return TrainedAdapter(
        rank=lora.rank,
        alpha=lora.alpha,
        layers=tuple(adapted_names(model)),
        trained_parameters=sum(tensor.numel() for tensor in learned_state(model).values()),
    )


def offset_of(job: Job, model: PreferenceModel, max_tokens: int) -> tuple[float | None, Reference | None]:
    """The model's mean score over the reference set and which set that is, where there is one."""
    if "reference" not in job.inputs:
        return None, None
    try:
        return measure_offset(model, job.input("reference"), max_tokens)
    except ComparisonSetError as error:
        raise JobError(str(error)) from error


def ties_of(
    model: PreferenceModel, train: Sequence[TokenPair], held_out: Sequence[TokenPair], left_out: Counter[str]
) -> Ties | None:
    """What became of ties, where the comparison set holds any."""
    ties = [pair for pair in held_out if pair.tie is not None]
    num_train = sum(pair.tie is not None for pair in train)
    if not ties and not num_train and not left_out["ties"]:
        return None
    better, worse = model.score_pairs(ties)
    gaps = [abs(a - b) for a, b in zip(better, worse, strict=True)]
    return Ties(
        train=num_train,
        left_out=left_out["ties"],
        held_out=len(ties),
        held_out_mean_abs_gap=math.fsum(gaps) / len(gaps) if gaps else None,
    )


def twin_part(
    job: Job, settings: PreferenceModelSettings, num_train: int, scored: Sequence[ScoredPair]
) -> TwinPart | None:
    """Which part this model trained on; for a watcher also how the two compare on what neither has seen."""
    if settings.twin == "off":
        return None
    if "production" not in job.inputs:
        return TwinPart(twin=settings.twin, part=settings.part)
    production = job.input("production")
    try:
        results = json.loads((production / "results.json").read_text(encoding="utf-8"))
        num_production = result_from_json(ModelSummary, results, where=f"the results in {production}").num_train
    except ResultError as error:
        raise JobError(str(error)) from error
    lines = (production / "held_out_scores.jsonl").read_text(encoding="utf-8").splitlines()
    gaps = gaps_of([json.loads(line) for line in lines])
    try:
        cost = cost_of_a_part(
            gaps,
            {pair.id: pair.gap for pair in scored},
            num_production,
            num_train,
            {pair.id: pair.dialogue for pair in scored},
        )
    except ValueError as error:
        raise JobError(f"{error} Train both on the same comparison set.") from error
    return WatcherPart(
        twin=settings.twin,
        part=settings.part,
        num_production=num_production,
        num_watcher=num_train,
        production_share=num_production / (num_production + num_train),
        **vars(cost),
    )


def choices(
    job: Job, settings: PreferenceModelSettings, model: Any, max_tokens: int, lora: Lora | None
) -> Mapping[str, object]:
    """Everything about the training that the paper leaves open or that changes the result, said outright."""
    adapted = {} if lora is None else {"trained": f"adapters of rank {lora.rank} and the head, the rest frozen"}
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
        **adapted,
    }


def _dropout(config: Any) -> float:
    """The largest dropout that the model's configuration names; families differ in how they call it."""
    names = ("attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop")
    return max((float(getattr(config, name, 0.0) or 0.0) for name in names), default=0.0)


def card(results: PreferenceModelResults, settings: PreferenceModelSettings) -> str:
    """The README.md of the result: what it is, how to read its score, how good it is."""
    held_out = results.held_out
    low, high = held_out.ci
    labels = "shuffled labels: a control whose scores mean nothing" if settings.shuffle_labels else "raters' choices"
    text = (
        "Scores a dialogue by how much raters would prefer its last reply. Only differences of scores mean anything: "
        "a difference of 1.0 predicts that the better reply wins 73% of the time. Load it with "
        "`AutoModelForSequenceClassification`; the score is read at the end-of-context id (`score_id` in chat.json), "
        "which must be the last id of the sequence."
    )
    facts = {
        "trained on": f"{results.num_train} comparisons ({labels})",
        "optimiser steps": results.optimiser_steps,
        "held-out accuracy": f"{held_out.accuracy:.3f} (95% interval {low:.3f} to {high:.3f}, n = {held_out.n})",
        "offset (mean score over the reference set)": "not measured" if results.offset is None else results.offset,
        **{name.replace("_", " "): value for name, value in results.choices.items()},
    }
    return model_card("Preference model", text, facts, tags=("preference-model", "reward-model"))
