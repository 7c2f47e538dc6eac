"""The pictures of a cycle report: drawn from the cycle's numbers, the same bytes for the same numbers.

To add one, write a function from the numbers (`report.cycle_numbers`, and what `report.write_report` adds) to a figure,
or None where there is nothing to show, and name it in `PICTURES`. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from models.preference.results import HeldOutReport
from orchestrator.reports.pictures import distillation, kl_law, ppo_course
from orchestrator.reports.pictures.preference_model import (
    ACCURACY_BY_GROUP,
    accuracy_by_group,
    accuracy_by_threshold,
    policy_scores,
    reliability,
    scaling,
    score_histograms,
)
from orchestrator.reports.pictures.style import (
    Picture,
    png,
)
from orchestrator.reports.policies import evaluation_of, training_of
from orchestrator.reports.preference_models import model_of, scaling_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_all(numbers: Mapping[str, Any]) -> list[Picture]:
    """Every picture for which the cycle has numbers."""
    drawn = []
    for name, (caption, draw) in PICTURES.items():
        figure = draw(numbers)
        if figure is not None:
            drawn.append(Picture(name, caption, png(figure)))
    return drawn


Draw = Callable[[Mapping[str, Any]], "Figure | None"]


def _ppo_course(numbers: Mapping[str, Any]) -> Figure | None:
    training = training_of(numbers)
    return None if training is None else ppo_course.ppo_course(training)


def _kl_law(numbers: Mapping[str, Any]) -> Figure | None:
    training = training_of(numbers)
    if training is None:
        return None
    return kl_law.kl_law(training.curve, evaluation_of(numbers, "best_of_n"), evaluation_of(numbers))


def _of_held_out(draw: Callable[[HeldOutReport], Figure | None]) -> Draw:
    """A picture of the report of the cycle's preference model."""

    def drawn(numbers: Mapping[str, Any]) -> Figure | None:
        model = model_of(numbers)
        return draw(model.held_out) if model is not None else None

    return drawn


def _policy_scores(numbers: Mapping[str, Any]) -> Figure | None:
    scores = numbers.get("policy_scores") or {}
    return _of_held_out(lambda held_out: policy_scores(held_out, scores))(numbers)


def _scaling(numbers: Mapping[str, Any]) -> Figure | None:
    found = scaling_of(numbers)
    return scaling(found) if found is not None else None


PICTURES: dict[str, tuple[str, Draw]] = {
    "distillation_kl": (distillation.CAPTION, distillation.distillation_kl),
    "reliability": ("Preference model: does a score gap win as often as it says?", _of_held_out(reliability)),
    "accuracy_by_group": (ACCURACY_BY_GROUP, _of_held_out(accuracy_by_group)),
    "accuracy_by_threshold": (
        "Preference model: accuracy where both replies are good. Where it falls, newer comparisons are needed.",
        _of_held_out(accuracy_by_threshold),
    ),
    "score_histograms": (
        "Preference model: scores of better and worse held-out replies.",
        _of_held_out(score_histograms),
    ),
    "scaling": ("Preference model: what more comparisons bring.", _scaling),
    "policy_scores": ("The policy's scores over those of the preference model's data.", _policy_scores),
    "ppo_course": (ppo_course.CAPTION, _ppo_course),
    "kl_law": (kl_law.CAPTION, _kl_law),
}
"""Every picture of the report by the stem of its file's name, in its order: a caption, and what draws it."""
