"""Objective comparisons of published benchmarks: LLMBar, and questions with answers to choose from (HHH of BIG-bench).

One of the answers is right by construction or by agreement of experts, so that there are neither ties nor strengths.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.data.formats.records import (
    ImportedComparison,
    RawRecord,
    Refused,
    Side,
    comparison_of,
    member,
)


def is_llmbar(record: RawRecord) -> bool:
    """Whether the record is one of LLMBar's."""
    return {"input", "output_1", "output_2", "label"} <= record.keys()


def parse_llmbar(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison of `output_1` (side a) and `output_2`; `label` 1 or 2 is the one that follows the instruction."""
    label = member(record, "label", int)
    if label not in (1, 2):
        raise Refused("unknown_value", f"label is {label}; expected 1 or 2")
    sides = [Side(member(record, f"output_{number}", str)) for number in (1, 2)]
    prompt = member(record, "input", str)
    yield comparison_of([{"role": "user", "content": prompt}], sides[0], sides[1], "a" if label == 1 else "b")


def is_choices(record: RawRecord) -> bool:
    """Whether the record is a question with marked answers."""
    return "input" in record and (
        isinstance(record.get("target_scores"), dict) or isinstance(record.get("targets"), dict)
    )


def parse_choices(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """The right answer (side a) against each wrong one.

    Answers stand in `target_scores` ({answer: 1 or 0}) or in `targets` ({"choices": [...], "labels": [1 or 0, ...]}).
    """
    prompt = member(record, "input", str)
    if "target_scores" in record:
        marked = list(member(record, "target_scores", dict).items())
    else:
        targets = member(record, "targets", dict)
        choices, labels = member(targets, "choices", list), member(targets, "labels", list)
        if len(choices) != len(labels) or not all(isinstance(choice, str) for choice in choices):
            raise Refused("wrong_type", f"{len(choices)} choices and {len(labels)} labels; expected a label per text")
        marked = list(zip(choices, labels, strict=True))
    right = [answer for answer, mark in marked if mark == 1]
    wrong = [answer for answer, mark in marked if mark == 0]
    if len(right) != 1 or len(right) + len(wrong) != len(marked) or not wrong:
        raise Refused(
            "unknown_value", f"{len(right)} of {len(marked)} answers are marked 1; expected one, the others 0"
        )
    for answer in wrong:
        yield comparison_of([{"role": "user", "content": prompt}], Side(right[0]), Side(answer), "a")
