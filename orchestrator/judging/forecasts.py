"""Preference models of the ledger beside each other: what more data or a bigger one would bring, and how one that
was trained on helpful comparisons alone judges harmless ones, and the other way round. Which of them may stand beside
each other is in `comparable_models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import Accuracy, Interval, ModelSummary
from models.runtime.results import result_from_json
from models.statistics.scaling import MIN_DISTINCT, Forecast, ScalingFit, ScalingPoint, fit_scaling
from orchestrator.judging.comparable_models import comparable

QUESTIONS = ("helpful", "harmless")
MIXES = {"helpful": ("helpful",), "harmless": ("harmless",), "both": ("harmless", "helpful")}


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """A point of the fit: the accuracy, over `n` pairs, of a model of this size after so many comparisons."""

    parameters: int
    comparisons: float
    accuracy: float
    n: int
    ci: Interval


@dataclass(frozen=True, kw_only=True)
class Scaling(ScalingFit):
    """The scaling fit with its points, what they are from, and how many models differ in what."""

    source: str
    points: tuple[MeasuredPoint, ...]
    left_out: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class MixMatrix:
    """Accuracy by mix trained on and by question asked; None where nobody measured it."""

    rows: Mapping[str, Mapping[str, Accuracy | None]]
    left_out: Mapping[str, int]
    """How many models that differ in more than the mix, by what is different."""


def scaling(session: Session, model: t.Artifact) -> Scaling | None:
    """The scaling fit over the preference models up to this one that are like it, or over this one's learning curve.

    The models are used where they differ enough: three sizes or three numbers of comparisons.
    """
    own, comparable_models = _summary(model), comparable(session, model)
    measured: list[tuple[MeasuredPoint, float]] = []
    for other in comparable_models.results:
        held_out = other.held_out
        if held_out.accuracy is not None and other.num_parameters is not None:
            found = MeasuredPoint(
                parameters=other.num_parameters,
                comparisons=other.num_train,
                accuracy=held_out.accuracy,
                n=held_out.n,
                ci=held_out.ci,
            )
            measured.append((found, held_out.n / held_out.design_effect))
    source = "the preference models of the ledger"
    if max(len({p.parameters for p, _ in measured}), len({p.comparisons for p, _ in measured})) < MIN_DISTINCT:
        measured = []
        if own.num_parameters is not None:
            for block in own.learning_curve:
                measured.append((MeasuredPoint(parameters=own.num_parameters, **vars(block)), block.n))
        source = "the learning curve of this preference model"
    if not measured:
        return None
    fit = fit_scaling(
        [ScalingPoint(point.parameters, point.comparisons, point.accuracy, n) for point, n in measured],
        comparisons=own.num_train,
    )
    points = tuple(point for point, _ in measured)
    return Scaling(**vars(fit), source=source, points=points, left_out=comparable_models.left_out)


def mix_matrix(session: Session, model: t.Artifact) -> MixMatrix | None:
    """Accuracy by what a model was trained on (rows) and what it was asked (columns); None where nobody measured it.

    The row of this model is its own; the others are of the newest model up to it that was trained on that mix and is
    like it in everything else.

    Source: arXiv:2204.05862, figure 19: the two objectives are anti-correlated.
    """
    own = _summary(model)
    if own.trained_on is None:
        return None
    comparable_models = comparable(session, model, any_mix=True)
    matrix: dict[str, dict[str, Accuracy | None]] = {}
    for name, trained_on in MIXES.items():
        mine = (other for other in (own, *reversed(comparable_models.results)) if other.trained_on == trained_on)
        newest = next(mine, None)
        by_question = newest.held_out.by_question if newest is not None else {}
        matrix[name] = {question: by_question.get(question) for question in QUESTIONS}
    return MixMatrix(rows=matrix, left_out=comparable_models.left_out)


def _summary(model: t.Artifact) -> ModelSummary:
    return result_from_json(ModelSummary, model.results, where=f"the results of preference model {model.id}")


def says_nothing(forecast: Forecast) -> bool:
    """Whether the interval of a forecast accuracy holds every accuracy there can be."""
    low, high = forecast.accuracy.ci
    return low <= 0 and high >= 1
