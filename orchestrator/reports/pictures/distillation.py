"""How the distilled initial policy came near its prompted teacher: the curve of KL against tokens, and its row.

Called by `orchestrator/reports/cycle.py` and `orchestrator/reports/pictures/catalogue.py` with the results of
`models/jobs/distill_student.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.initial_policy.results import DistillationCourse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Context distillation of the initial policy: KL from the prompted teacher, nats per token, against tokens of text. "
    "The line is on texts that were never trained on, the dots are means of the steps between."
)


def distillation_kl(found: DistillationCourse) -> Figure:
    """KL against tokens."""
    from orchestrator.reports.pictures.style import BLUE, VERMILION, finish, new_figure

    figure, [axes] = new_figure()
    curve = found.distillation_curve
    tokens = [point.tokens for point in curve]
    axes.plot(tokens, [point.held_out_kl_nats for point in curve], color=BLUE, linewidth=1.4, label="held-out texts")
    seen = [(point.tokens, point.train_kl_nats) for point in curve if point.train_kl_nats is not None]
    axes.plot(*zip(*seen, strict=True), "o", color=VERMILION, markersize=3.5, label="texts in training")
    axes.set_ylim(bottom=0)
    title = f"Distillation: KL {found.held_out_kl_before:.3g} to {found.held_out_kl_after:.3g}"
    finish(axes, title, "tokens of text", "KL from the prompted teacher, nats", legend="above")
    return figure
