"""The robustness experiment: how far a policy can be driven by one preference model before another disagrees.

Two PMs are trained on halves of the comparisons, PPO follows the first (the training PM), and both score it on the way.
Where the training PM's score rises and that of the other (the watcher) lags, PPO exploits the first one's errors. What
follows what is in `flows/robustness.py`; the stages are those of a cycle, taken for a configuration alone.

Source: arXiv:2204.05862 §4.2 (train PM and test PM).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from db import tables as t
from orchestrator.config import CycleConfig
from orchestrator.cycles.record import database
from orchestrator.judging.evaluations import mean_interval, replies
from orchestrator.reports.pictures.catalogue import Picture, data_uri, finish, new_figure, png
from orchestrator.reports.pictures.kl_law import draw_curve, law_numbers, law_rows
from orchestrator.settings import Settings
from orchestrator.stages.context import StageContext, build
from orchestrator.stages.snapshots import snapshots_of
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "robustness_report"
SNAPSHOTS = 4
"""Policies on the way that both PMs judge, where the configuration asks for none."""


def with_halves(config: CycleConfig) -> CycleConfig:
    """The experiment's configuration: twins on halves, snapshots on the way, no wire at the gap that it measures."""
    return config.model_copy(
        update={
            "preference_model": config.preference_model.model_copy(update={"twin": "halves"}),
            "ppo": config.ppo.model_copy(
                update={
                    "snapshots": config.ppo.snapshots or SNAPSHOTS,
                    "watch": config.ppo.watch.model_copy(update={"max_twin_gap": 0.0}),
                }
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
        judged = [list(replies(context.fetch(id_))) for id_ in evaluation_ids]
        table = two_way(judged)
        run = context.results(run_id)
        points = run.get("snapshots") or []
        names = ["initial policy", *(f"snapshot {number}" for number in range(1, len(points) + 1)), "result"]
        samples = [0, *(point["samples"] for point in points), run["samples"]]
        numbers: dict[str, Any] = {
            "name": config.name,
            "policies": [
                {"policy": name, "samples": at} | row for name, at, row in zip(names, samples, table, strict=True)
            ],
            "preference_models": {
                role: _of_preference_model(context.results(id_))
                for role, id_ in (("training PM", preference_model_id), ("watcher", watcher_id))
            },
            "stopped": run.get("stopped"),
            "kl_law": law_numbers(run["curve"]),
            "curve": run["curve"],
        }
        numbers["gap_opens"] = gap_opens(numbers["policies"])
        best, loss = past_best(judged)
        numbers["watcher_best"] = numbers["policies"][best] | {"result_minus_best": loss}
        figure = gap_picture(numbers)
        picture = Picture("gap", CAPTION, png(figure))

        def write(out: Path) -> dict[str, Any]:
            (out / "report.json").write_text(json.dumps(numbers, indent=1, sort_keys=True))
            (out / "report.md").write_text(to_markdown(numbers, "gap.png"))
            (out / "gap.png").write_bytes(picture.png)
            return {key: numbers[key] for key in ("name", "policies", "preference_models", "gap_opens", "watcher_best")}

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


def two_way(evaluations: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Policies by PMs: of each evaluation KL, and gains by the training PM and by the watcher over the first one.

    Records carry `prompt_id`, `score` by the training PM, `watcher_score` by the watcher, and `kl_nats`. Gains are
    paired by prompt, which takes away what the two PMs' scores start from; the gap is the first gain minus the second,
    in PM units (a unit is a win rate of 73 % as that PM has it). Intervals are 95 %, over prompts.
    """
    start = {record["prompt_id"]: record for record in evaluations[0]}
    rows = []
    for records in evaluations:
        pairs = [(record, start[record["prompt_id"]]) for record in records]
        training = [now["score"] - then["score"] for now, then in pairs]
        test = [now["watcher_score"] - then["watcher_score"] for now, then in pairs]
        gaps = [one - other for one, other in zip(training, test, strict=True)]
        rows.append(
            {
                "kl_nats": math.fsum(record["kl_nats"] for record in records) / len(records),
                "n": len(records),
                "training_gain": _interval(training),
                "watcher_gain": _interval(test),
                "gap": _interval(gaps),
            }
        )
    return rows


def past_best(evaluations: Sequence[Sequence[dict[str, Any]]]) -> tuple[int, dict[str, Any] | None]:
    """The place of the policy that the watcher likes best, and the result's score less its; None for the result itself.

    The difference is by the watcher alone, so that the two PMs' scales play no part, and paired by prompt. It is a
    little too large: the best of several is partly the luckiest.
    """
    means = [math.fsum(record["watcher_score"] for record in records) / len(records) for records in evaluations]
    best = means.index(max(means))
    if best == len(means) - 1:
        return best, None
    then = {record["prompt_id"]: record["watcher_score"] for record in evaluations[best]}
    return best, _interval([record["watcher_score"] - then[record["prompt_id"]] for record in evaluations[-1]])


def gap_opens(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first policy from which on every gap's interval lies above 0; None where the last one's does not."""
    first = None
    for row in reversed(rows):
        low = row["gap"]["ci"][0]
        if low is None or low <= 0:
            break
        first = row
    return None if first is None else {key: first[key] for key in ("policy", "samples", "kl_nats", "gap")}


CAPTION = (
    "Above: PM score against √KL while PPO ran, by the PM that it followed and by the watcher, which never saw the "
    "comparisons of the first. Below: how much more the policy gained by the first than by the second."
)


def gap_picture(numbers: dict[str, Any]) -> Figure:
    """Both PMs' curves with the law's line, and under them the gap between their gains."""
    from orchestrator.reports.pictures.catalogue import BLUE, GREY, PURPLE

    figure, [scores, gap] = new_figure(2, 2.9)
    title = draw_curve(scores, numbers["curve"])
    finish(scores, title, "", "PM score", legend="best")
    curve = [point for point in numbers["curve"] if point.get("score_watcher") is not None]
    gap.axhline(0, color=GREY, linestyle="--", linewidth=1)
    if curve:
        start = curve[0]
        roots = [math.sqrt(max(0.0, point["kl_nats"])) for point in curve]
        gaps = [
            (point["score"] - start["score"]) - (point["score_watcher"] - start["score_watcher"]) for point in curve
        ]
        gap.plot(roots, gaps, "o", color=BLUE, markersize=3, label="training prompts")
    rows = numbers["policies"]
    values = [row["gap"]["mean"] for row in rows]
    errors = [
        [0.0 if row["gap"]["ci"][side] is None else abs(row["gap"]["ci"][side] - row["gap"]["mean"]) for row in rows]
        for side in (0, 1)
    ]
    at = [math.sqrt(max(0.0, row["kl_nats"])) for row in rows]
    gap.errorbar(at, values, yerr=errors, fmt="D", color=PURPLE, markersize=4, capsize=2.5, label="held-out prompts")
    opens = numbers["gap_opens"]
    title = "Gap: " + (f"open from KL {opens['kl_nats']:.3g} nats on" if opens else "none that its interval shows")
    finish(gap, title, "√KL to the initial policy, √nat per reply", "gain by training − watcher", legend="best")
    return figure


def to_markdown(numbers: dict[str, Any], picture: str) -> str:
    """The report as an operator reads it; `picture` is where the PNG is."""
    lines = [f"# Robustness: {numbers['name']}", ""]
    opens = numbers["gap_opens"]
    if opens is None:
        lines.append("No gap is to be seen at the end: its interval holds 0, or lies below.")
    else:
        lines.append(
            f"**The gap opens at KL {opens['kl_nats']:.3g} nats**, after {opens['samples']} samples: from there on the "
            f"training PM sees more gain than the watcher, at first {_shown(opens['gap'])}. Beyond it, ask people "
            "before a policy is promoted."
        )
    best = numbers["watcher_best"]
    if best["result_minus_best"] is None:
        lines += ["", "The watcher likes the result best."]
    else:
        lines += [
            "",
            f"The watcher likes the {best['policy']} best, at KL {best['kl_nats']:.3g} nats; against it the result has "
            f"{_shown(best['result_minus_best'])}.",
        ]
    if numbers["stopped"]:
        lines += ["", f"PPO was stopped: {numbers['stopped']}."]
    lines += ["", f"![both scores, and their gap]({picture})", "", CAPTION, ""]
    lines += ["## Policies by preference models", ""]
    lines += ["Gains over the initial policy on held-out prompts, in PM units, with 95 % intervals.", ""]
    lines += ["| policy | samples | KL, nats | training PM | watcher | gap |", "|---|---|---|---|---|---|"]
    for row in numbers["policies"]:
        gains = " | ".join(_shown(row[name]) for name in ("training_gain", "watcher_gain", "gap"))
        lines.append(f"| {row['policy']} | {row['samples']} | {row['kl_nats']:.3g} | {gains} |")
    lines += ["", "## Preference models", "", "| | trained on | held-out accuracy |", "|---|---|---|"]
    for role, model in numbers["preference_models"].items():
        low, high = model["ci"]
        lines.append(f"| {role} | {model['num_train']} | {model['accuracy']:.3f} [{low:.3f}, {high:.3f}] |")
    lines += ["", "## √KL law", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in law_rows(numbers["curve"])]
    return "\n".join(lines) + "\n"


def _of_preference_model(results: dict[str, Any]) -> dict[str, Any]:
    held_out = results["held_out"]
    return {"num_train": results["num_train"], "accuracy": held_out["accuracy"], "ci": list(held_out["ci"])}


def _interval(values: Sequence[float]) -> dict[str, Any]:
    mean, ci = mean_interval(values)
    return {"mean": mean, "ci": [bound if math.isfinite(bound) else None for bound in ci]}


def _shown(number: dict[str, Any]) -> str:
    low, high = ("?" if bound is None else f"{bound:+.3f}" for bound in number["ci"])
    return f"{number['mean']:+.3f} [{low}, {high}]"
