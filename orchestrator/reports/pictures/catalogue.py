"""The pictures of a cycle report: drawn from the cycle's numbers, the same bytes for the same numbers.

To add one, write a function from what is `Drawable` to a figure, or None where there is nothing to show, and name it in
`PICTURES`. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.preference.results import HeldOutReport
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.pictures import distillation, kl_law, ppo_course, weeks
from orchestrator.reports.pictures.preference_model import (
    ACCURACY_BY_GROUP,
    Scores,
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawable:
    """What pictures are drawn from: the cycle's numbers, and the scores of both policies' replies."""

    numbers: CycleNumbers
    policy_scores: Scores


def draw_all(numbers: CycleNumbers, policy_scores: Scores | None = None) -> list[Picture]:
    """Every picture for which the cycle has numbers."""
    drawable, drawn = Drawable(numbers, policy_scores or {}), []
    for name, (caption, draw) in PICTURES.items():
        figure = draw(drawable)
        if figure is not None:
            drawn.append(Picture(name, caption, png(figure)))
    return drawn


Draw = Callable[[Drawable], "Figure | None"]


def _distillation(drawable: Drawable) -> Figure | None:
    found = drawable.numbers.distillation
    return None if found is None else distillation.distillation_kl(found)


def _ppo_course(drawable: Drawable) -> Figure | None:
    training = drawable.numbers.training
    return None if training is None else ppo_course.ppo_course(training)


def _kl_law(drawable: Drawable) -> Figure | None:
    numbers = drawable.numbers
    if numbers.training is None:
        return None
    return kl_law.kl_law(numbers.training.curve, numbers.best_of_n, numbers.evaluation)


def _of_held_out(draw: Callable[[HeldOutReport], Figure | None]) -> Draw:
    """A picture of the report of the cycle's preference model."""

    def drawn(drawable: Drawable) -> Figure | None:
        model = drawable.numbers.preference_model
        return draw(model.held_out) if model is not None else None

    return drawn


def _policy_scores(drawable: Drawable) -> Figure | None:
    return _of_held_out(lambda held_out: policy_scores(held_out, drawable.policy_scores))(drawable)


def _scaling(drawable: Drawable) -> Figure | None:
    found = drawable.numbers.scaling
    return scaling(found) if found is not None else None


PICTURES: dict[str, tuple[str, Draw]] = {
    "weeks": (weeks.CAPTION, lambda drawable: weeks.weeks_so_far(drawable.numbers.weeks)),
    "distillation_kl": (distillation.CAPTION, _distillation),
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
