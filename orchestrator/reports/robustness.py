"""The report of the robustness experiment as Markdown."""

from __future__ import annotations

from orchestrator.judging.robustness import Gain, RobustnessNumbers
from orchestrator.reports.kl_law import law_rows
from orchestrator.reports.pictures.robustness import CAPTION
from orchestrator.reports.wording import SIGNED, with_interval


def to_markdown(numbers: RobustnessNumbers, picture: str) -> str:
    """The report as an operator reads it; `picture` is where the PNG is."""
    lines = [f"# Robustness: {numbers.name}", ""]
    opens = numbers.gap_opens
    if opens is None:
        lines.append("No gap is to be seen at the end: its interval holds 0, or lies below.")
    else:
        lines.append(
            f"**The gap opens at KL {opens.kl_nats:.3g} nats**, after {opens.samples} samples: from there on the "
            f"training PM sees more gain than the watcher, at first {_gain(opens.gap)}. Beyond it, ask people "
            "before a policy is promoted."
        )
    best = numbers.watcher_best
    if best.result_minus_best is None:
        lines += ["", "The watcher likes the result best."]
    else:
        lines += [
            "",
            f"The watcher likes the {best.policy} best, at KL {best.kl_nats:.3g} nats; against it the result has "
            f"{_gain(best.result_minus_best)}.",
        ]
    if numbers.stopped:
        lines += ["", f"PPO was stopped: {numbers.stopped}."]
    lines += ["", f"![both scores, and their gap]({picture})", "", CAPTION, ""]
    lines += ["## Policies by preference models", ""]
    lines += ["Gains over the initial policy on held-out prompts, in PM units, with 95 % intervals.", ""]
    lines += ["| policy | samples | KL, nats | training PM | watcher | gap |", "|---|---|---|---|---|---|"]
    for row in numbers.policies:
        gains = " | ".join(map(_gain, (row.training_gain, row.watcher_gain, row.gap)))
        lines.append(f"| {row.policy} | {row.samples} | {row.kl_nats:.3g} | {gains} |")
    lines += ["", "## Preference models", "", "| | trained on | held-out accuracy |", "|---|---|---|"]
    for role, model in numbers.preference_models.items():
        lines.append(f"| {role} | {model.num_train} | {with_interval(model.accuracy, model.ci)} |")
    lines += ["", "## √KL law", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in law_rows(numbers.curve)]
    return "\n".join(lines) + "\n"


def _gain(measured: Gain) -> str:
    return with_interval(measured.mean, measured.ci, SIGNED)
