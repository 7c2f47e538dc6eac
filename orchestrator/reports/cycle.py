"""The report of a cycle: what went in, what was measured, what was decided, in Markdown, JSON and pictures.

Elo comes from people's comparisons alone; where nobody compared, it is null and the report says so. The pictures are
in `orchestrator/reports/pictures/catalogue.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cycles.record import database
from orchestrator.judging.evaluations import replies
from orchestrator.judging.forecasts import matrix_lines, mix_matrix, scaling, scaling_rows
from orchestrator.reports.pictures.catalogue import Picture, data_uri, draw_all
from orchestrator.reports.pictures.distillation import distillation_numbers, distillation_rows
from orchestrator.reports.pictures.kl_law import best_of_rows, law_numbers, law_rows
from orchestrator.reports.stops import stop_lines, stops_of
from orchestrator.reports.watching import collapse_remarks, collapse_rows, watch_rows
from orchestrator.stages.context import StageContext, build
from orchestrator.stages.detectors import detector_rows
from orchestrator.stages.snapshots import described, snapshots_of
from orchestrator.store import ledger

FIRST_STAGE = "prepare_initial_policy"
NOT_JUDGED = "not judged by people"


def write_report(cycle_id: int, failure: str | None = None) -> tuple[int, str]:
    """Gather the cycle's numbers into a report artifact. Returns its id and the Markdown, its pictures inline.

    `failure` is the error, as "Type: message", that ended the run whose report this is.
    """
    with StageContext(cycle_id, "write_report") as context:
        numbers = cycle_numbers(cycle_id, failure)
        # The stage that writes this is running too, and would be shown so for ever.
        numbers["stages"] = [stage for stage in numbers["stages"] if stage["state"] != "running"]
        pictures = draw_all(numbers | {"policy_scores": _policy_scores(context, cycle_id)})
        # The Prefect UI shows PNG as data URIs and strips inline SVG.
        markdown = to_markdown(numbers, [(picture, data_uri(picture.png)) for picture in pictures])
        # Times stay out of the artifact, so that the same cycle gives the same report.
        lasting = {key: value for key, value in numbers.items() if key != "stages"}

        def write(out: Path) -> dict[str, Any]:
            (out / "report.json").write_text(json.dumps(lasting, indent=1, sort_keys=True))
            beside = [(picture, f"{picture.name}.png") for picture in pictures]
            (out / "report.md").write_text(to_markdown(lasting, beside))
            for picture, name in beside:
                (out / name).write_bytes(picture.png)
            return {"cycle": numbers["cycle"], "decision": numbers["decision"]}

        inputs = {role: id_ for role, id_ in numbers["artifact_ids"].items() if id_ is not None}
        settings = {"numbers": {key: value for key, value in lasting.items() if key != "artifact_ids"}}
        return build(context, "report", settings, inputs, write), markdown


def cycle_numbers(cycle_id: int, failure: str | None = None) -> dict[str, Any]:
    """Everything the ledger knows about a cycle's outcome, and what ended its run just now where that is given."""
    with database() as session:
        cycle = session.get_one(t.Cycle, cycle_id)
        artifacts = _newest_artifacts(session, cycle_id)
        decision = session.scalars(
            select(t.Decision).where(t.Decision.cycle_id == cycle_id).order_by(t.Decision.id.desc()).limit(1)
        ).first()
        snapshot = artifacts.get("snapshot")
        initial = artifacts.get("initial_policy")
        comparison_set = artifacts.get("comparison_set")
        model = artifacts.get("preference_model")
        detector = artifacts.get("ood_detector")
        numbers: dict[str, Any] = {
            "cycle": cycle.number,
            "name": cycle.name,
            "artifact_ids": {kind: artifact.id for kind, artifact in artifacts.items()},
            "comparison_set": comparison_set.results if comparison_set else None,
            "data_check": artifacts["data_check"].results if "data_check" in artifacts else None,
            "distillation": distillation_numbers(initial.results) if initial else None,
            "preference_model": model.results if model else None,
            "scaling": scaling(session, model) if model else None,
            "mix_matrix": mix_matrix(session, model) if model else None,
            "watcher": _watcher(session, cycle_id),
            "orientation": _evaluation(session, cycle_id, "orientation", None),
            "snapshot": snapshot.digest if snapshot else None,
            "training": snapshot.results if snapshot else None,
            "snapshots": [described(kept) for kept in snapshots_of(session, snapshot.id)] if snapshot else [],
            "kl_law": law_numbers(snapshot.results.get("curve") or []) if snapshot else None,
            "evaluation": _evaluation(session, cycle_id, "policy", snapshot.id if snapshot else None),
            "initial_evaluation": _initial_evaluation(session, cycle_id, snapshot),
            "best_of_n": _evaluation(session, cycle_id, "best_of_n", None),
            "detector": detector.results | {"digest": detector.digest} if detector else None,
            "elo": _evaluation(session, cycle_id, "elo", snapshot.id if snapshot else None),
            "stops": stops_of(
                session,
                cycle_id,
                snapshot.results if snapshot else None,
                snapshot.digest if snapshot else None,
                failure,
            ),
            "decision": decision.decision if decision else None,
            "reasons": decision.reasons if decision else [],
            "stages": stage_times(session, cycle_id),
        }
    return numbers


def stage_times(session: Session, cycle_id: int) -> list[dict[str, Any]]:
    """The cycle's stages in the order in which they began: state, seconds of each, and how many of them its job ran.

    Stages that ran at the same time count the same seconds each. `run` numbers the runs of the cycle from 1: one that
    was started again takes its stages from the first one on.
    """
    times: list[dict[str, Any]] = []
    run = 0
    for stage in session.scalars(select(t.Stage).where(t.Stage.cycle_id == cycle_id).order_by(t.Stage.id)):
        run += stage.name == FIRST_STAGE
        times.append(
            {
                "stage": stage.name,
                "state": stage.state,
                "run": run,
                "seconds": (stage.ended_at - stage.started_at).total_seconds() if stage.ended_at else None,
                "job_seconds": stage.job_seconds,
            }
        )
    return times


def to_markdown(numbers: dict[str, Any], pictures: Sequence[tuple[Picture, str]] = ()) -> str:
    """The report as an operator reads it in the Prefect UI; each picture comes with where it is."""
    lines = [f"# Cycle {numbers['cycle']}: {numbers['name']}", ""]
    decision = {"promote": "**Promoted**", "refuse": "**Refused**", None: "No snapshot was decided on"}
    lines += [f"{decision[numbers['decision']]}" + (f": `{numbers['snapshot']}`" if numbers["snapshot"] else ""), ""]
    for reason in numbers["reasons"]:
        lines.append(f"- {'passed' if reason['passed'] else '**failed**'}: {reason['reason']}")
    for remark in collapse_remarks(numbers["evaluation"] or {}, numbers.get("initial_evaluation") or {}):
        lines.append(f"- remark: {remark}")
    lines += ["", *stop_lines(numbers.get("stops") or [])]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _rows(numbers)]
    for picture, place in pictures:
        lines += ["", picture.caption, "", f"![{picture.caption}]({place})"]
    lines += matrix_lines(numbers.get("mix_matrix"))
    lines += _mistakes(numbers)
    if numbers.get("stages"):
        lines += ["", "## Time", "", "| stage | state | seconds | of which the job |", "|---|---|---|---|"]
        newest = max(stage["run"] for stage in numbers["stages"])
        for stage in numbers["stages"]:
            state = stage["state"] + (" (before the restart)" if stage["run"] < newest else "")
            lines.append(
                f"| {stage['stage']} | {state} | {_number(stage['seconds'], 1)} | {_number(stage['job_seconds'], 1)} |"
            )
    return "\n".join(lines) + "\n"


def _rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    rows = distillation_rows(numbers.get("distillation"))
    if numbers["comparison_set"]:
        found = numbers["comparison_set"]
        rows.append(
            (
                "Comparisons",
                f"{found['num_comparisons']} ({found['num_train']} train, {found['num_held_out']} held out)",
            )
        )
        excluded = ", ".join(
            f"{reason}: {count}" for reason, count in sorted(found.get("excluded", {}).items()) if count
        )
        if excluded:
            rows.append(("Left out", excluded))
    rows += _data_check(numbers.get("data_check"))
    if numbers["preference_model"]:
        held_out = numbers["preference_model"]["held_out"]
        accuracy = _with_interval(held_out.get("accuracy"), held_out.get("ci"))
        if held_out.get("dialogues") is not None:
            accuracy += f" (n = {held_out['n']} from {held_out['dialogues']} dialogues)"
        rows.append(("PM held-out accuracy", accuracy))
        for grouping in ("by_source", "by_question", "by_tranche"):
            groups = held_out.get(grouping, {})
            # A single question or tranche says what the overall figure says.
            if len(groups) > 1 or grouping == "by_source":
                for name, part in sorted(groups.items()):
                    rows.append((f"… {name}", f"{_with_interval(part['accuracy'], part['ci'])} (n = {part['n']})"))
        if held_out.get("calibration", {}).get("n"):
            rows.append(("PM calibration", _calibration(held_out["calibration"])))
            by_question = held_out["calibration"]["by_question"]
            rows += [(f"… {name}", _calibration(part)) for name, part in by_question.items() if len(by_question) > 1]
            bands = held_out["calibration"].get("by_score_band", {})
            rows += [(f"… {name} of the scores", _calibration(part)) for name, part in bands.items()]
        for name, part in (numbers["preference_model"].get("skills") or {}).get("by_source", {}).items():
            rows.append(
                (f"PM accuracy on skill {name}", f"{_with_interval(part['accuracy'], part['ci'])} (n = {part['n']})")
            )
    rows += scaling_rows(numbers.get("scaling"))
    if numbers.get("watcher"):
        rows.append(("Twin", _twin(numbers["watcher"])))
    if numbers["orientation"]:
        found = numbers["orientation"]
        rows.append(("Orientation check", f"{found['accuracy']:.0%} of {found['n']} pairs"))
    elif numbers["preference_model"]:
        rows.append(
            ("Orientation check", "skipped by orientation.shipped = false: labels turned round everywhere pass")
        )
    if numbers.get("training"):
        rows += watch_rows(numbers["training"], _offsets(numbers))
    if numbers["evaluation"]:
        found, initial = numbers["evaluation"], numbers["initial_evaluation"] or {}
        rows.append(("KL to the initial policy", f"{found['kl_nats']:.3g} nats per reply"))
        rows.append(("PM score", f"{_number(found['pm_score'])} (initial policy: {_number(initial.get('pm_score'))})"))
        # Raw scores of two weeks' preference models can't be compared; above the project's reference set they can.
        offset = (numbers["preference_model"] or {}).get("offset")
        if (numbers["preference_model"] or {}).get("reference"):
            rows.append(("… above the reference set", _number(found["pm_score"] - offset)))
        rows.append(("Reply length", f"{_number(found['reply_tokens'], 1)} tokens"))
        rows += collapse_rows(found, initial)
    if numbers["best_of_n"]:
        found = numbers["best_of_n"]
        rows.append((f"Best of {found['best_of']} of the initial policy", f"PM score {_number(found['pm_score'])}"))
        rows += best_of_rows(found)
    for kept in numbers.get("snapshots") or []:
        what = f"PM score {_number(kept['score'])} after {kept['samples']} samples: `{kept['digest']}`"
        rows.append((f"Snapshot at KL {kept['kl_nats']:.3g} nats", what))
    rows += law_rows((numbers.get("training") or {}).get("curve") or [])
    rows += detector_rows(numbers.get("detector"))
    if numbers["elo"]:
        rows.append(("Elo against the initial policy", _with_interval(numbers["elo"]["elo"], numbers["elo"]["ci"], 0)))
    else:
        rows.append(("Elo against the initial policy", NOT_JUDGED))
    return rows


def _data_check(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    rows = [
        (
            "Repeats",
            f"{found['repeated_prompts']} of {found['prompts']} prompts stand in several comparisons; "
            f"{found['repeated_votes']} votes of the same rater on the same replies; "
            f"{found['contradicted']} pairs of replies decided both ways",
        ),
        ("Opening messages in both parts", str(found["openings_in_several_parts"])),
    ]
    for overlap in found["against"]:
        by_part = ", ".join(f"{count} {part.replace('_', ' ')}" for part, count in overlap["by_part"].items())
        rows.append(
            (
                f"Overlap with {overlap['file']}",
                f"{overlap['prompts']} prompts, {overlap['comparisons']} comparisons"
                + (f" ({by_part})" if by_part else "")
                + f"; {overlap['texts_met']} of its {overlap['texts']} texts",
            )
        )
    return rows


def _calibration(found: dict[str, Any]) -> str:
    error = f"error {found['expected_calibration_error']:.3f} ({found['error_by_chance']:.3f} by chance)"
    if found["slope"] is None:
        return error
    low, high = found["slope_ci"]
    return f"{_verdict(low, high)}: slope {_with_interval(found['slope'], found['slope_ci'], 2)}, {error}"


def _verdict(low: float, high: float) -> str:
    """What an interval of the slope of outcomes on gaps says."""
    if high < 0:
        return "the wrong way round"
    if high < 1:
        return "over-confident"
    return "under-confident" if low > 1 else "calibrated within the interval"


def _mistakes(numbers: dict[str, Any]) -> list[str]:
    """The pairs that the preference model is most surely wrong about, by id; their texts are in the comparison set."""
    mistakes = ((numbers["preference_model"] or {}).get("held_out") or {}).get("mistakes")
    if not mistakes:
        return []
    lines = ["", "## Most confident mistakes of the preference model", ""]
    lines += [f"`orchestrator cycle show {numbers['cycle']} --mistakes` prints their texts.", ""]
    lines += ["| comparison | source | question | better | worse | gap |", "|---|---|---|---|---|---|"]
    for pair in mistakes:
        scores = " | ".join(f"{pair[name]:.2f}" for name in ("better_score", "worse_score", "gap"))
        lines.append(f"| {pair['id']} | {pair['source']} | {pair['question']} | {scores} |")
    return lines


def _policy_scores(context: StageContext, cycle_id: int) -> dict[str, dict[str, list[float]]]:
    """The scores of the snapshot's and the initial policy's replies to the held-out prompts, by kind."""
    with context.session() as session:
        artifacts = _newest_artifacts(session, cycle_id)
        subjects = {"snapshot": artifacts.get("snapshot"), "initial": artifacts.get("initial_policy")}
        folders = {}
        for who, subject in subjects.items():
            found = _evaluation_row(session, cycle_id, "policy", subject.id) if subject is not None else None
            if found is not None and found.artifact_id is not None:
                folders[who] = session.get_one(t.Artifact, found.artifact_id).digest
    scores: dict[str, dict[str, list[float]]] = {}
    for who, digest in folders.items():
        by_kind = scores.setdefault(who, {})
        for record in replies(context.store.fetch(digest)):
            by_kind.setdefault(record["kind"], []).append(record["score"])
    return scores


def _newest_artifacts(session: Session, cycle_id: int) -> dict[str, t.Artifact]:
    """By kind, the artifact that the cycle's latest finished stage of that kind ended with."""
    kinds = (
        "initial_policy", "comparison_set", "data_check", "preference_model", "prompt_set", "snapshot", "ood_detector",
    )  # fmt: skip
    rows = session.scalars(
        select(t.Artifact)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Stage.state.in_(("done", "found")), t.Artifact.kind.in_(kinds))
        .where(~ledger.is_watcher())
        .order_by(t.Stage.id)
    )
    return {artifact.kind: artifact for artifact in rows}


def _watcher(session: Session, cycle_id: int) -> dict[str, Any] | None:
    """Results of the preference model's twin, where the cycle trained one."""
    return session.scalars(
        select(t.Artifact.results)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Stage.state.in_(("done", "found")), t.Stage.name == "train_watcher")
        .order_by(t.Stage.id.desc())
        .limit(1)
    ).first()


def _evaluation(session: Session, cycle_id: int, kind: str, subject_id: int | None) -> dict[str, Any] | None:
    found = _evaluation_row(session, cycle_id, kind, subject_id)
    return found.numbers if found else None


def _evaluation_row(session: Session, cycle_id: int, kind: str, subject_id: int | None) -> t.Evaluation | None:
    query = select(t.Evaluation).where(t.Evaluation.cycle_id == cycle_id, t.Evaluation.kind == kind)
    if subject_id is not None:
        query = query.where(t.Evaluation.subject_id == subject_id)
    return session.scalars(query.order_by(t.Evaluation.id.desc()).limit(1)).first()


def _initial_evaluation(session: Session, cycle_id: int, snapshot: t.Artifact | None) -> dict[str, Any] | None:
    query = select(t.Evaluation).where(t.Evaluation.cycle_id == cycle_id, t.Evaluation.kind == "policy")
    if snapshot is not None:
        query = query.where(t.Evaluation.subject_id != snapshot.id)
    found = session.scalars(query.order_by(t.Evaluation.id.desc()).limit(1)).first()
    return found.numbers if found else None


def _offsets(numbers: dict[str, Any]) -> tuple[float, float] | None:
    """The offsets of the PM and of its twin, where both were measured, and on one reference set."""
    models = [numbers.get(name) or {} for name in ("preference_model", "watcher")]
    sets = [(model.get("reference") or {}).get("sha256") for model in models]
    return (models[0]["offset"], models[1]["offset"]) if sets[0] and sets[0] == sets[1] else None


def _twin(watcher: dict[str, Any]) -> str:
    """What the twin saw, how good it is, and what the split costs the model that PPO follows, in points of accuracy."""
    twin = watcher["twin"]
    low_high = f" [{100 * twin['cost_ci'][0]:+.1f}, {100 * twin['cost_ci'][1]:+.1f}]" if twin["cost_ci"] else ""
    accuracy = _with_interval(watcher["held_out"].get("accuracy"), watcher["held_out"].get("ci"))
    return (
        f"accuracy {accuracy} on {twin['num_watcher']} comparisons of its own; the PM trained on "
        f"{twin['num_production']} ({twin['production_share']:.0%}), which costs it "
        f"{100 * twin['cost']:+.1f}{low_high} points of accuracy ({twin['method']})"
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(value: float | None, ci: list[float] | None, digits: int = 3) -> str:
    if value is None or ci is None:
        return "–"
    return f"{value:.{digits}f} [{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]"
