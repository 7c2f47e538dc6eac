"""The stage that writes the report of a cycle into the store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from db import tables as t
from orchestrator.judging.evaluations import read_replies
from orchestrator.reports.cycle import cycle_numbers, evaluation_row, newest_artifacts
from orchestrator.reports.cycle_text import to_markdown
from orchestrator.reports.pictures.catalogue import draw_all
from orchestrator.reports.pictures.style import data_uri
from orchestrator.stages.context import StageContext, build


def write_report(cycle_id: int, failure: str | None = None) -> tuple[int, str]:
    """Gather the cycle's numbers into a report artifact. Returns its id and the Markdown, its pictures inline.

    `failure` is the error, as "Type: message", that ended the run whose report this is.
    """
    with StageContext(cycle_id, "write_report", after_end=True) as context:
        numbers = cycle_numbers(cycle_id, failure)
        # The stage that writes this is running too, and would be shown so for ever.
        over = tuple(stage for stage in numbers.stages if stage.state != "running")
        numbers = replace(numbers, stages=over)
        pictures = draw_all(numbers, _policy_scores(context, cycle_id))
        # The Prefect UI shows PNG as data URIs and strips inline SVG.
        markdown = to_markdown(numbers, [(picture, data_uri(picture.png)) for picture in pictures])
        # Times stay out of the artifact, so that the same cycle gives the same report.
        lasting = replace(numbers, stages=())
        recorded = {key: value for key, value in lasting.to_json().items() if key != "stages"}

        def write(out: Path) -> dict[str, Any]:
            (out / "report.json").write_text(json.dumps(recorded, indent=1, sort_keys=True))
            named_pictures = [(picture, f"{picture.name}.png") for picture in pictures]
            (out / "report.md").write_text(to_markdown(lasting, named_pictures))
            for picture, name in named_pictures:
                (out / name).write_bytes(picture.png)
            return {"cycle": numbers.cycle, "decision": numbers.decision}

        settings = {"numbers": {key: value for key, value in recorded.items() if key != "artifact_ids"}}
        return build(context, "report", settings, dict(numbers.artifact_ids), write), markdown


def _policy_scores(context: StageContext, cycle_id: int) -> dict[str, dict[str, list[float]]]:
    """The scores of the snapshot's and the initial policy's replies to the held-out prompts, by kind."""
    with context.session() as session:
        artifacts = newest_artifacts(session, cycle_id)
        subjects = {"snapshot": artifacts.get("snapshot"), "initial": artifacts.get("initial_policy")}
        folders = {}
        for who, subject in subjects.items():
            found = evaluation_row(session, cycle_id, "policy", subject.id) if subject is not None else None
            if found is not None and found.artifact_id is not None:
                folders[who] = session.get_one(t.Artifact, found.artifact_id).digest
    scores: dict[str, dict[str, list[float]]] = {}
    for who, digest in folders.items():
        by_kind = scores.setdefault(who, {})
        for judged in read_replies(context.store.fetch(digest)):
            by_kind.setdefault(judged.kind, []).append(judged.score)
    return scores
