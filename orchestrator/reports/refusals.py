"""What the policy's chat template refused in a cycle: how many records of each use, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from models.chat.refusals import RefusedRecords
from orchestrator.reports.numbers import CycleNumbers

ADVICE = (
    "left out; to have them, give the model's folder a chat template (chat_template.jinja) that takes such dialogues"
)


def refused_of(numbers: CycleNumbers) -> Iterator[tuple[str, RefusedRecords]]:
    """What was refused, with the word for what it is, in the order in which a cycle comes to it."""
    model, watcher, training = numbers.preference_model, numbers.watcher, numbers.training
    logp = training.logp_accuracy if training is not None else None
    found = [
        ("texts to distil on", numbers.texts_refused),
        ("openings to write prompts after", numbers.examples_refused),
    ]
    for whose, trained in (("", model), ("the twin's ", watcher)):
        if trained is not None and trained.refused is not None:
            used = {"train": trained.num_train, "held_out": trained.num_held_out}
            found += [
                (f"{whose}{split.replace('_', '-')} comparisons ({used[split]} used)", refused)
                for split, refused in trained.refused.items()
            ]
    if model is not None and model.reference is not None:
        found.append(("reference pairs", model.reference.refused))
    for word, part in (("orientation pairs", numbers.orientation), ("prompts of the detector", numbers.detector)):
        found.append((word, part.refused if part is not None else None))
    found.append(("prompts of PPO", training.prompts_refused if training is not None else None))
    found.append(("comparisons for log-p accuracy", logp.refused if logp is not None else None))
    judged = numbers.evaluation or numbers.initial_evaluation
    found.append(("prompts to judge on", judged.prompts_refused if judged is not None else None))
    yield from ((word, refused) for word, refused in found if refused is not None)


def refused_said(numbers: CycleNumbers) -> list[str]:
    """One sentence over all uses: numbers, the first reason, advice; none where nothing was refused."""
    found = list(refused_of(numbers))
    if not found:
        return []
    counts = ", ".join(f"{refused.count} {word}" for word, refused in found)
    return [f"{counts} (the first has {found[0][1].first}): {ADVICE}"]
