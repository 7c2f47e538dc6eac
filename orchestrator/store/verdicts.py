"""What the gates found, in plain words: one sentence for a person, and a row a gate for who wants its numbers.

It reads what stands on decisions and approvals: the verdicts' JSON (`orchestrator/judging/gates.py` makes it) and the
evidence's, either of any age, so that a figure which is not there is left out of the sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

Json = Mapping[str, Any]
QUESTIONS = ("helpful", "harmless")
SHOWN = 0.005
"""A gain that is less would be said to be 0.00."""


class _Words(NamedTuple):
    title: str
    failed: str
    """What it means that the gate failed, as the end of "it was not put live: …"."""


WORDS = {
    "pm_accuracy": _Words("The preference model's accuracy", "its preference model is not surely better than chance"),
    "pm_accuracy_by_question": _Words(
        "The preference model's accuracy by question", "its preference model is worse than chance on a question"
    ),
    "kl": _Words("Distance from the initial policy", "it is too far from the initial policy"),
    "score_gain": _Words("Gain over the initial policy", "it is not surely better than the initial policy"),
    "live_gain": _Words("Gain over the live policy", "it is worse than the policy that is live"),
    "gain_by_question": _Words("Gain by question", "it lost on a kind of request"),
    "fresh_agreement": _Words(
        "This week's comparisons", "this week's comparisons contradict the last preference model"
    ),
    "duplicates": _Words("Replies that are alike", "too many of its replies are alike"),
    "refusals": _Words("Refusals", "it refuses too many ordinary requests"),
}
"""Each gate by what it is about, and what it means where it failed."""
NOT_MOVED = "it has not moved away from the initial policy"


@dataclass(frozen=True)
class GateRow:
    """A gate in a table: what it is about, what it came to in a word, and its numbers with bound and setting."""

    title: str
    outcome: str
    """`passed`, `failed`, or `asks a person`."""
    numbers: str


def gate_rows(reasons: Sequence[Json]) -> tuple[GateRow, ...]:
    """The gates as rows of a table, a remark behind the numbers."""
    return tuple(GateRow(title(one["gate"]), _outcome(one), _numbers(one)) for one in reasons)


def gates_folded(rows: Sequence[GateRow]) -> list[str]:
    """The gates as lines of Markdown: a table that folds; nothing where there are none."""
    if not rows:
        return []
    body = "".join(f"<tr>{''.join(map(_cell, (row.title, row.outcome, row.numbers)))}</tr>" for row in rows)
    head = "<thead><tr><th>Gate</th><th>Outcome</th><th>Numbers</th></tr></thead>"
    table = f"<table>{head}<tbody>{body}</tbody></table>"
    # In one line, since an empty one would end the block that Markdown hands on as it is.
    return [f"<details><summary>The gates and their numbers</summary>{table}</details>"]


def _cell(text: str) -> str:
    # A name of a setting is wider than what a phone has left for its column; Prefect's UI takes every style away.
    return f"<td>{escape(text).replace('_', '_<wbr>')}</td>"


def title(gate: str) -> str:
    """What a gate is about."""
    return WORDS[gate].title if gate in WORDS else gate.replace("_", " ")


def failed_said(reasons: Sequence[Json], kl_nats: float | None = None) -> str:
    """What the gates that failed mean, joined by "and"; "" where none did."""
    failed = [one["gate"] for one in reasons if not one["passed"]]
    return " and ".join(NOT_MOVED if gate == "kl" and kl_nats == 0 else _failed(gate) for gate in failed)


def passed_said(reasons: Sequence[Json]) -> str:
    """How many of the gates passed."""
    passed = sum(bool(one["passed"]) for one in reasons)
    if passed < len(reasons):
        return f"{passed} of {len(reasons)} gates passed"
    return {0: "every gate passed", 1: "its one gate passed", 2: "both gates passed"}.get(
        passed, f"all {passed} gates passed"
    )


def evidence_said(evidence: Json) -> str:
    """How the policy compares with the live one, and how good its preference model is; "" where neither is known."""
    gain, accuracy = _gain_said(evidence), _accuracy_said(evidence)
    if gain and accuracy:
        return f"{gain}, which is right on {accuracy}"
    return gain or (accuracy and f"its preference model is right on {accuracy}")


def asked_because(reasons: Sequence[Json], otherwise: str) -> str:
    """Why a person has the last word; `otherwise` is why they have it where no gate asks for them."""
    return failed_said(reasons) or otherwise


def _failed(gate: str) -> str:
    return WORDS[gate].failed if gate in WORDS else f"the gate {gate} failed"


def _outcome(reason: Json) -> str:
    return "passed" if reason["passed"] else "asks a person" if reason.get("holds") else "failed"


def _numbers(reason: Json) -> str:
    remark = reason.get("remark")
    return f"{reason['reason']}. Remark: {remark}" if remark else reason["reason"]


def _gain_said(evidence: Json) -> str:
    """Over the live policy, or over the initial one where nothing was live or the two can't be compared."""
    over_live = (evidence.get("live") or {}).get("gain") or {}
    gain, whose = over_live.get("gain"), "the policy that was live"
    if gain is None:
        gain, whose = evidence.get("score_gain"), "the initial policy"
    if gain is None:
        return ""
    much = f"score {abs(gain):.2f} {'above' if gain > 0 else 'below'}" if abs(gain) >= SHOWN else "score like"
    return f"its replies {much} those of {whose}, by its preference model"


def _accuracy_said(evidence: Json) -> str:
    """Of comparisons that the preference model has not seen, question by question where there are several."""
    by_question = evidence.get("pm_accuracy_by_question") or {}
    shares = {question: by_question[question]["share"] for question in QUESTIONS if question in by_question}
    if shares:
        said = " and ".join(f"{share:.0%} of {question}" for question, share in shares.items())
    elif evidence.get("pm_accuracy") is not None:
        said = f"{evidence['pm_accuracy']:.0%} of the"
    else:
        return ""
    return f"{said} comparisons kept aside"
