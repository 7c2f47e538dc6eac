"""The report of a cycle as one HTML file that asks for nothing outside itself, and its first screen in Markdown.

The first screen is for whoever runs the loop; what a researcher wants folds below it. Times are in no artifact: whoever
shows the file puts them where `COST` stands in it (`orchestrator/web/pages/desk/reports.py` does).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from models.policy.results import EvaluationPart
from models.preference.results import Accuracy
from orchestrator.people.erasure import TEXTS_BEGIN, TEXTS_END
from orchestrator.reports import cycle_text
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.pictures.style import Picture, data_uri
from orchestrator.reports.preference_models import matrix_rows
from orchestrator.reports.remarks import remarks
from orchestrator.reports.samples import Sample
from orchestrator.reports.stops import stop_lines
from orchestrator.reports.verdict import verdict
from orchestrator.reports.wording import MISSING, SHARE, interval, number
from orchestrator.store.verdicts import GateRow, gate_rows, gates_folded

ABOVE, COST = "<!-- above -->", "<!-- cost -->"
"""Stand in the file for the way to other pages, and for the times of the cycle."""
PICTURES_OF = {
    cycle_text.COMPARISONS: ("distillation_kl",),
    cycle_text.MODEL: ("accuracy_by_group", "reliability", "accuracy_by_threshold", "score_histograms", "scaling"),
    cycle_text.PPO: ("kl_law", "ppo_course"),
    cycle_text.JUDGED: ("policy_scores",),
}
"""Which pictures stand in which section."""
_MARKED = re.compile(r"\\([|`*_<>\[\]\\])|`([^`]*)`")


@dataclass(frozen=True)
class Figure:
    """One of the few figures of the first screen: what it is, its value, and a word on it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Beside:
    """A figure of the initial, the live and the new policy."""

    name: str
    initial: str
    live: str
    new: str


def to_html(numbers: CycleNumbers, pictures: Sequence[Picture], samples: Sequence[Sample]) -> str:
    """The whole report."""
    named = {picture.name: picture for picture in pictures}
    return _templates().get_template("report.html").render(
        numbers=numbers,
        verdict=verdict(numbers),
        remarks=remarks(numbers),
        gates=gates_of(numbers),
        figures=first_figures(numbers),
        weeks=named.get("weeks"),
        samples=samples,
        sections=[
            (section, [named[name] for name in PICTURES_OF[section.title] if name in named])
            for section in cycle_text.sections(numbers)
        ],
        beside=beside(numbers),
        matrix=matrix_rows(numbers.mix_matrix),
        lineage=[(kind.replace("_", " "), digest) for kind, digest in numbers.digests.items()],
        texts_begin=Markup(TEXTS_BEGIN),
        texts_end=Markup(TEXTS_END),
        above=Markup(ABOVE),
        cost=Markup(COST),
    )  # fmt: skip


def gates_of(numbers: CycleNumbers) -> tuple[GateRow, ...]:
    """What the gates found, as rows of a table."""
    return gate_rows([reason.to_json() for reason in numbers.reasons])


def first_screen(numbers: CycleNumbers, weeks: Picture | None, link: str | None) -> str:
    """The first screen in Markdown, for the Prefect UI. No replies: what is kept there no erasure reaches."""
    lines = [f"# Cycle {numbers.cycle}: {numbers.name}", "", f"**{verdict(numbers)}**", ""]
    lines += [f"- remark: {remark}" for remark in remarks(numbers)]
    lines += ["", *stop_lines(numbers.stops)]
    figures = first_figures(numbers)
    if figures:
        lines += ["| figure | value | |", "|---|---|---|"]
        lines += [f"| {figure.name} | {figure.value} | {figure.note} |" for figure in figures]
    if weeks is not None:
        lines += ["", f"![{weeks.caption}]({data_uri(weeks.png)})"]
    lines += ["", *gates_folded(gates_of(numbers))]
    where = f"[at the desk]({link})" if link else "at the desk, under Cycles"
    lines += [
        "",
        f"The whole report, with replies side by side: {where}; or `orchestrator cycle show {numbers.cycle}`.",
    ]
    return "\n".join(lines + cycle_text.times(numbers.stages)) + "\n"


def first_figures(numbers: CycleNumbers) -> list[Figure]:
    """What people say, how good the preference model is on either question, and how far the policy went."""
    found = [_elo(numbers)] if numbers.snapshot is not None else []
    if numbers.preference_model is not None:
        held_out = numbers.preference_model.held_out
        questions = {name: part for name, part in held_out.by_question.items() if name in ("helpful", "harmless")}
        for name, part in sorted(questions.items(), reverse=True) or [("all", held_out)]:
            found.append(Figure(f"Preference model, {name}", number(part.accuracy, ".0%"), _accuracy(part)))
    if numbers.evaluation is not None:
        kl = f"{numbers.evaluation.kl_nats:.2g}"
        found.append(Figure("Distance", f"{kl} nats", "KL a reply to the initial policy"))
    return found


def _elo(numbers: CycleNumbers) -> Figure:
    elo = numbers.elo
    if elo is None:
        return Figure("People's Elo", MISSING, "nobody compared it yet")
    if elo.against_live is not None:
        live = elo.against_live
        note = f"{interval(live.ci, '+.0f')}, {live.num_comparisons} comparisons"
        return Figure("People's Elo against live", f"{live.elo:+.0f}", note)
    note = f"{interval(elo.ci, '+.0f')}, {elo.num_comparisons} comparisons"
    initial_was_live = numbers.live is not None and numbers.live.is_initial
    of = "live, the initial policy" if initial_was_live else "the initial policy"
    return Figure(f"People's Elo against {of}", f"{elo.elo:+.0f}", note)


def _accuracy(found: Accuracy) -> str:
    return f"{interval(found.ci, '.0%')} of {found.n} held-out comparisons"


Read = Callable[[EvaluationPart], float | None]
_OF_ALL: tuple[tuple[str, Read, str], ...] = (
    ("PM score", lambda part: part.pm_score, ".3f"),
    ("Watcher's score", lambda part: part.watcher_score, ".3f"),
    ("KL, nats per reply", lambda part: part.kl_nats, ".3g"),
    ("Length, tokens", lambda part: part.reply_tokens, ".1f"),
    ("Cut off", lambda part: part.truncated, SHARE),
    ("Entropy, nats per token", lambda part: part.entropy, ".3f"),
    ("Replies that equal another", lambda part: part.collapse.duplicates if part.collapse else None, SHARE),
    ("Refusals", lambda part: part.collapse.refusals if part.collapse else None, SHARE),
)


def beside(numbers: CycleNumbers) -> list[Beside]:
    """The initial, the live and the new policy on the same prompts by the same preference model, figure by figure."""
    policies = (numbers.initial_evaluation, numbers.live_evaluation, numbers.evaluation)
    if numbers.evaluation is None:
        return []
    rows = [Beside(name, *(_read(policy, read, form) for policy in policies)) for name, read, form in _OF_ALL]
    for kind in sorted(numbers.evaluation.by_kind, reverse=True):
        parts = [policy.by_kind.get(kind) if policy is not None else None for policy in policies]
        rows.append(Beside(f"PM score, {kind}", *(_read(part, _OF_ALL[0][1], ".3f") for part in parts)))
    return [row for row in rows if row.new != MISSING]


def _read(part: EvaluationPart | None, read: Read, form: str) -> str:
    return MISSING if part is None else number(read(part), form)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": inline, "data_uri": data_uri, "command": _command}
    return environment


def inline(text: str) -> Markup:
    """A cell of the Markdown report as HTML: `code` marked, escapes taken off, everything else shown as it is."""
    parts: list[Any] = []
    at = 0
    for found in _MARKED.finditer(text):
        parts.append(escape(text[at : found.start()]))
        escaped, code = found.groups()
        parts.append(escape(escaped) if escaped is not None else Markup("<code>{}</code>").format(code))
        at = found.end()
    return Markup("").join([*parts, escape(text[at:])])


def _command(digest: str) -> str:
    return f"orchestrator lineage {digest.removeprefix('sha256:')[:12]}"
