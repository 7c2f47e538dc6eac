"""Stages of the robustness experiment: two halves, two preference models, one PPO, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select

from db import tables as t
from models.policy.results import PPOResult
from models.preference.results import ModelSummary
from models.runtime.results import part_to_json, result_from_json, result_to_json
from orchestrator.config import CycleConfig
from orchestrator.database import database
from orchestrator.judging.evaluations import read_replies
from orchestrator.judging.kl_law import curve_law
from orchestrator.judging.robustness import (
    JudgedPolicy,
    RobustnessNumbers,
    RobustnessResults,
    Trained,
    WatcherBest,
    gap_opens,
    past_best,
    two_way,
)
from orchestrator.reports.pictures.robustness import CAPTION, gap_picture
from orchestrator.reports.pictures.style import Picture, data_uri, png
from orchestrator.reports.robustness import to_markdown
from orchestrator.settings import Settings
from orchestrator.stages.context import StageContext, build
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.store.ledger import snapshots_of

KIND = "robustness_report"
SNAPSHOTS = 4
"""Policies on the way that both PMs judge, where the configuration asks for none."""


def with_halves(config: CycleConfig) -> CycleConfig:
    """The experiment's configuration: twins on halves, snapshots on the way, no wire at the gap that it measures."""
    return config.model_copy(
        update={
            "preference_model": replace(config.preference_model, twin="halves"),
            "ppo": replace(
                config.ppo,
                snapshots=config.ppo.snapshots or SNAPSHOTS,
                watch=replace(config.ppo.watch, max_twin_gap=0.0),
            ),
        }
    )


def comparison_set(reference: str | None = None) -> int:
    """The comparison set that is meant (an id, or the beginning of a digest), or the newest that is whole.

    Raises:
        ArtifactError: there is none, it is something else, or text of it was erased.
    """
    whole = t.Artifact.digest.not_in(select(t.ErasedArtifact.digest))
    nothing = "There is no comparison set to split in halves. Freeze one with `orchestrator cycle run`."
    with database() as session:
        found = ledger.named_or_newest(session, reference, ("comparison_set",), whole, nothing=nothing)
        ledger.check_whole(session, [found])
        return found.id


def policies(initial_id: int, run_id: int) -> list[int]:
    """What both PMs judge: the initial policy, the snapshots on the way, and the run's result."""
    with database() as session:
        return [initial_id, *(artifact.id for artifact in snapshots_of(session, run_id)), run_id]


def write_report(
    config: CycleConfig, run_id: int, preference_model_id: int, watcher_id: int, evaluation_ids: Sequence[int]
) -> tuple[int, str]:
    """Gather both PMs' scores into a report artifact. Returns its id and the Markdown, its picture inline.

    The first evaluation is the initial policy's, the last that of the run's result.
    """
    with StageContext(config, "robustness_report") as context:
        run = result_from_json(PPOResult, context.results(run_id), where=f"the results of artifact {run_id}")
        points = run.snapshots or ()
        names = ["initial policy", *(f"snapshot {number}" for number in range(1, len(points) + 1)), "result"]
        samples = [0, *(point.samples for point in points), run.samples]
        judged = [
            JudgedPolicy(name, at, list(read_replies(context.fetch(id_))))
            for name, at, id_ in zip(names, samples, evaluation_ids, strict=True)
        ]
        policies = two_way(judged)
        best, loss = past_best(judged)
        found = RobustnessResults(
            name=config.name,
            policies=tuple(policies),
            preference_models={
                role: _trained(context, id_)
                for role, id_ in (("training PM", preference_model_id), ("watcher", watcher_id))
            },
            gap_opens=gap_opens(policies),
            watcher_best=WatcherBest(**vars(policies[best]), result_minus_best=loss),
        )
        numbers = RobustnessNumbers(**vars(found), stopped=run.stopped, curve=run.curve)
        figure = gap_picture(numbers)
        picture = Picture("gap", CAPTION, png(figure))

        def write(out: Path) -> Mapping[str, object]:
            law = curve_law(run.curve)
            report = part_to_json(numbers) | {"kl_law": part_to_json(law) if law is not None else None}
            (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True))
            (out / "report.md").write_text(to_markdown(numbers, "gap.png"))
            (out / "gap.png").write_bytes(picture.png)
            return result_to_json(found)

        inputs = {"run": run_id, "preference_model": preference_model_id, "watcher": watcher_id}
        inputs |= {f"evaluation_{number:02}": id_ for number, id_ in enumerate(evaluation_ids)}
        return build(context, KIND, {"name": config.name}, inputs, write), to_markdown(numbers, data_uri(picture.png))


def report_folder(reference: str | None = None) -> Path:
    """The files of an experiment's report (an id, or the beginning of a digest), or of the newest.

    Raises:
        ArtifactError: there is none, or it is something else.
    """
    settings = Settings.from_env()
    nothing = "No experiment has ended yet. Run one with `orchestrator experiment robustness --config FILE`."
    with database() as session:
        found = ledger.named_or_newest(session, reference, (KIND,), nothing=nothing)
        ledger.check_whole(session, [found])
    return ArtifactStore(settings.artifact_url, settings.home / "cache").fetch(found.digest)


def _trained(context: StageContext, model_id: int) -> Trained:
    where = f"the results of preference model {model_id}"
    model = result_from_json(ModelSummary, context.results(model_id), where=where)
    return Trained(model.num_train, model.held_out.accuracy, model.held_out.ci)
