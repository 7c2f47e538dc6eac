"""The stage that writes the report of a cycle into the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from db import tables as t
from models.policy.results import JudgedReply
from orchestrator.judging.evaluations import read_replies
from orchestrator.reports.cycle import cycle_numbers, evaluation_row
from orchestrator.reports.cycle_text import to_markdown
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.page import first_screen, to_html
from orchestrator.reports.pictures.catalogue import draw_all
from orchestrator.reports.samples import Sample, pick, sample_lines
from orchestrator.stages.context import StageContext, build
from orchestrator.store import ledger

Replies = Mapping[str, Sequence[JudgedReply]]
"""What each policy's evaluation judged: those of `snapshot`, `initial` and `live`, as far as there are any."""


@dataclass(frozen=True)
class WrittenReport:
    """The report artifact, its first screen in Markdown with the picture inline, and all of it without pictures."""

    artifact_id: int
    first_screen: str
    text: str


def write_report(cycle_id: int, failure: str | None = None) -> WrittenReport:
    """Gather the cycle's numbers into a report artifact; where they are as before, that one is found.

    `failure` is the error, as "Type: message", that ended the run whose report this is.
    """
    with StageContext(cycle_id, "write_report", after_end=True) as context:
        numbers = cycle_numbers(cycle_id, failure)
        # The stage that writes this is running too, and would be shown so for ever.
        over = tuple(stage for stage in numbers.stages if stage.state != "running")
        numbers = replace(numbers, stages=over)
        replies = _replies(context, numbers)
        pictures = draw_all(numbers, {who: _scores(found) for who, found in replies.items()})
        samples = _samples(replies)
        # Times stay out of the artifact, so that the same cycle gives the same report.
        lasting = replace(numbers, stages=())
        recorded = {key: value for key, value in lasting.to_json().items() if key != "stages"}

        def write(out: Path) -> Mapping[str, object]:
            (out / "report.json").write_text(json.dumps(recorded, indent=1, sort_keys=True))
            named_pictures = [(picture, f"{picture.name}.png") for picture in pictures]
            (out / "report.md").write_text(to_markdown(lasting, named_pictures), encoding="utf-8")
            (out / "report.html").write_text(to_html(lasting, pictures, samples), encoding="utf-8")
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in sample_lines(samples)]
            (out / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
            for picture, name in named_pictures:
                (out / name).write_bytes(picture.png)
            return {"cycle": numbers.cycle, "decision": numbers.decision}

        told = {key: value for key, value in recorded.items() if key not in ("artifact_ids", "digests")}
        settings = {"numbers": told, "page": PAGE}
        # A report tells of what was erased too; its own texts are then what is left of them.
        id_ = build(context, "report", settings, dict(numbers.artifact_ids), write, whole=False)
        weeks = next((picture for picture in pictures if picture.name == "weeks"), None)
        return WrittenReport(id_, first_screen(numbers, weeks, _link(context, numbers)), to_markdown(numbers))


PAGE = 2
"""Which layout report.html has: another one makes a new artifact of the same numbers."""


def _link(context: StageContext, numbers: CycleNumbers) -> str | None:
    """Where the desk shows the report, if it is known where the desk is."""
    url = context.settings.feedback_url
    return f"{url}/desk/cycles/{numbers.cycle}/report" if url else None


def _replies(context: StageContext, numbers: CycleNumbers) -> Replies:
    """The replies of the new, the initial and the live policy to the held-out prompts."""
    ids = {"snapshot": numbers.artifact_ids.get("snapshot"), "initial": numbers.artifact_ids.get("initial_policy")}
    if numbers.live is not None and not numbers.live.is_initial:
        ids["live"] = numbers.live.id
    assert context.cycle_id is not None, "an experiment has a report of its own"
    folders = {}
    with context.session() as session:
        for who, subject_id in ids.items():
            found = evaluation_row(session, context.cycle_id, "policy", subject_id) if subject_id else None
            if found is not None and found.artifact_id is not None:
                folders[who] = ledger.place_of(session, session.get_one(t.Artifact, found.artifact_id).digest)
    return {who: list(read_replies(context.store.fetch(digest))) for who, digest in folders.items()}


def _scores(replies: Sequence[JudgedReply]) -> dict[str, list[float]]:
    """Scores by kind of prompt."""
    by_kind: dict[str, list[float]] = {}
    for judged in replies:
        by_kind.setdefault(judged.kind, []).append(judged.score)
    return by_kind


def _samples(replies: Replies) -> list[Sample]:
    """The new policy's replies beside those of what was live, or of the initial policy where that was."""
    new = replies.get("snapshot", ())
    if "live" in replies:
        return pick(replies["live"], new, "live")
    return pick(replies.get("initial", ()), new, "initial")
