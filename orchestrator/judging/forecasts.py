"""Preference models of the ledger beside each other: what more data or a bigger one would bring, and how one that
was trained on helpful comparisons alone judges harmless ones, and the other way round. Which of them may stand beside
each other is in `comparable_models.py`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from db import tables as t
from models.statistics.intervals import share_interval
from models.statistics.scaling import MIN_DISTINCT, ScalingPoint, fit_scaling
from orchestrator.judging.comparable_models import comparable

QUESTIONS = ("helpful", "harmless")
MIXES = {"helpful": ["helpful"], "harmless": ["harmless"], "both": ["harmless", "helpful"]}


def scaling(session: Session, model: t.Artifact) -> dict[str, Any] | None:
    """The scaling fit over the preference models up to this one that are like it, or over this one's learning curve.

    The models are used where they differ enough: three sizes or three numbers of comparisons.
    """
    beside = comparable(session, model)
    measured = [
        _point(results["num_parameters"], results["num_train"], results["held_out"])
        for results in beside.results
        if results["held_out"]["accuracy"] is not None
    ]
    now = model.results.get("num_train")
    source = "the preference models of the ledger"
    points = [point for point, _ in measured]
    if max(len({p.parameters for p in points}), len({p.comparisons for p in points})) < MIN_DISTINCT:
        measured = [
            _point(model.results["num_parameters"], block["comparisons"], block)
            for block in model.results.get("learning_curve", [])
        ]
        source = "the learning curve of this preference model"
    if not measured:
        return None
    used = [
        {"parameters": p.parameters, "comparisons": p.comparisons, "accuracy": p.accuracy, **counted}
        for p, counted in measured
    ]
    fit = fit_scaling([point for point, _ in measured], comparisons=now)
    return {"source": source, "points": used, "left_out": beside.left_out, **fit}


def _point(parameters: int, comparisons: float, entry: dict[str, Any]) -> tuple[ScalingPoint, dict[str, Any]]:
    """A point of the fit, and the interval of its accuracy with its count."""
    # Results of before dialogues were heeded have no design effect.
    effect = entry.get("design_effect") or 1.0
    ci = entry["ci"] or list(share_interval(entry["accuracy"], entry["n"], design_effect=effect))
    point = ScalingPoint(parameters, comparisons, entry["accuracy"], entry["n"] / effect)
    return point, {"n": entry["n"], "ci": ci}


def mix_matrix(session: Session, model: t.Artifact) -> dict[str, Any] | None:
    """Accuracy by what a model was trained on (rows) and what it was asked (columns); None where nobody measured it.

    The row of this model is its own; the others are of the newest model up to it that was trained on that mix and is
    like it in everything else. Under `left_out` is how many were not.

    Source: arXiv:2204.05862, figure 19: the two objectives are anti-correlated.
    """
    own = model.results.get("trained_on")
    if own is None:
        return None
    beside = comparable(session, model, any_mix=True)
    rows = [
        (results["trained_on"], results["held_out"]["by_question"])
        for results in (model.results, *reversed(beside.results))
    ]
    matrix: dict[str, dict[str, Any]] = {}
    for name, trained_on in MIXES.items():
        found: dict[str, Any] = next((by_question for mix, by_question in rows if mix == trained_on), {})
        matrix[name] = {question: found.get(question) for question in QUESTIONS}
    return {"rows": matrix, "left_out": beside.left_out}


def says_nothing(forecast: dict[str, Any]) -> bool:
    """Whether the interval of a forecast accuracy holds every accuracy there can be."""
    low, high = forecast["accuracy"]["ci"]
    return bool(low <= 0 and high >= 1)
