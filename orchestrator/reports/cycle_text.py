"""The report of a cycle as Markdown: its rows, section by section. `cycle.py` says what goes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from models.policy.results import Evaluation
from models.preference.results import Accuracy, HeldOutReport, PreferenceModelResults, Reliability, WatcherPart
from orchestrator.config.by_model import Rates, rate_said, rates_for
from orchestrator.cycles.cost import StageTime
from orchestrator.data.comparison_set import ComparisonSetResults
from orchestrator.data.contamination import DataCheckResults
from orchestrator.judging.elo import EloAgainstLive, EloNumbers
from orchestrator.judging.gates import LiveEvidence
from orchestrator.reports.detectors import detector_rows
from orchestrator.reports.distillation import distillation_rows
from orchestrator.reports.kl_law import best_of_rows, law_rows
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.pictures.style import Picture
from orchestrator.reports.preference_models import matrix_lines, scaling_rows
from orchestrator.reports.remarks import remarks
from orchestrator.reports.stops import stop_lines
from orchestrator.reports.verdict import verdict
from orchestrator.reports.watching import collapse_rows, watch_rows
from orchestrator.reports.wording import interval, number, with_interval

Row = tuple[str, str]

NOT_JUDGED = "not judged by people"


def to_markdown(numbers: CycleNumbers, pictures: Sequence[tuple[Picture, str]] = ()) -> str:
    """The report as an operator reads it in the Prefect UI; each picture comes with where it is."""
    lines = [f"# Cycle {numbers.cycle}: {numbers.name}", ""]
    decision = {"promote": "**Promoted**", "refuse": "**Refused**", None: "No snapshot was decided on"}
    lines += [decision[numbers.decision] + (f": `{numbers.snapshot}`" if numbers.snapshot else ""), ""]
    lines += [verdict(numbers), ""]
    for reason in numbers.reasons:
        lines.append(f"- {'passed' if reason.passed else '**failed**'}: {reason.reason}")
    lines += [f"- remark: {remark}" for remark in remarks(numbers)]
    lines += ["", *stop_lines(numbers.stops)]
    for section in sections(numbers):
        lines += [f"## {section.title}", "", "| figure | value |", "|---|---|"]
        lines += [*(f"| {name} | {value} |" for name, value in section.rows), ""]
    for picture, place in pictures:
        lines += ["", picture.caption, "", f"![{picture.caption}]({place})"]
    lines += matrix_lines(numbers.mix_matrix)
    lines += _mistakes(numbers)
    lines += times(numbers.stages)
    return "\n".join(lines) + "\n"


class Section(NamedTuple):
    """Rows of the report that belong together; docs/reference/report.md explains them under the same title."""

    title: str
    rows: list[Row]


COMPARISONS, MODEL, PPO, JUDGED = "The comparisons", "The preference model", "PPO", "The snapshot, judged"


def sections(numbers: CycleNumbers) -> list[Section]:
    """The rows by section; a section for which the cycle has no numbers is left out."""
    found = [
        Section(
            COMPARISONS,
            [
                *distillation_rows(numbers.distillation),
                *_comparisons(numbers.comparison_set),
                *_data_check(numbers.data_check),
            ],
        ),
        Section(MODEL, _preference_model(numbers)),
        Section(PPO, _ppo(numbers)),
        Section(JUDGED, [*_judged(numbers), *detector_rows(numbers.detector), *_elo(numbers)]),
    ]
    return [section for section in found if section.rows]


def times(stages: Sequence[StageTime]) -> list[str]:
    """The table of the stages, which is in no artifact."""
    if not stages:
        return []
    lines = ["", "## Time", "", "| stage | state | seconds | of which the job |", "|---|---|---|---|"]
    newest = max(stage.run for stage in stages)
    for stage in stages:
        state = stage.state + (" (before the restart)" if stage.run < newest else "")
        lines.append(
            f"| {stage.stage} | {state} | {number(stage.seconds, '.1f')} | {number(stage.job_seconds, '.1f')} |"
        )
    return lines


def _comparisons(found: ComparisonSetResults | None) -> list[Row]:
    if found is None:
        return []
    split = f"{found.num_train} train, {found.num_held_out} held out"
    rows = [("Comparisons", f"{found.num_comparisons} ({split})")]
    excluded = ", ".join(f"{reason}: {count}" for reason, count in sorted(found.excluded.items()) if count)
    if excluded:
        rows.append(("Left out", excluded))
    return rows


def _preference_model(numbers: CycleNumbers) -> list[Row]:
    """What the preference model is worth, by itself and beside its twin and the pairs whose order is known."""
    model, watcher = numbers.preference_model, numbers.watcher
    rows: list[Row] = []
    if model is not None:
        rows += _held_out(model.held_out)
        rate, usual = model.choices.get("learning_rate"), _usual(model.num_parameters)
        if isinstance(rate, float):
            default = usual.preference_model if usual else None
            said = rate_said(rate, default, model.num_parameters, adapters=model.lora is not None)
            rows.append(("PM learning rate", said))
        skills = model.skills.by_source if model.skills is not None else {}
        rows += [(f"PM accuracy on skill {name}", _accuracy(part)) for name, part in skills.items()]
    rows += scaling_rows(numbers.scaling)
    if watcher is not None:
        rows.append(("Twin", _twin(watcher)))
    ordered = numbers.orientation
    if ordered is not None:
        rows.append(("Orientation check", f"{number(ordered.accuracy, '.0%')} of {ordered.n} pairs"))
    elif model is not None:
        rows.append(
            ("Orientation check", "skipped by orientation.shipped = false: labels turned round everywhere pass")
        )
    return rows


def _held_out(found: HeldOutReport) -> list[Row]:
    accuracy = with_interval(found.accuracy, found.ci)
    if found.dialogues is not None:
        accuracy += f" (n = {found.n} from {found.dialogues} dialogues)"
    rows = [("PM held-out accuracy", accuracy)]
    # A single question or tranche says what the overall figure says.
    for groups, least, word in (
        (found.by_question, 2, ""),
        (found.by_source, 1, "source "),
        (found.by_tranche, 2, "tranche "),
    ):
        if len(groups) >= least:
            rows += [(f"… {word}{name}", _accuracy(part)) for name, part in sorted(groups.items())]
    calibration = found.calibration
    if calibration is not None and calibration.n:
        rows.append(("PM calibration", _calibration(calibration)))
        by_question = calibration.by_question
        rows += [(f"… {name}", _calibration(part)) for name, part in by_question.items() if len(by_question) > 1]
        bands = calibration.by_score_band
        rows += [(f"… {name} of the scores", _calibration(part)) for name, part in bands.items()]
    return rows


def _accuracy(found: Accuracy) -> str:
    return f"{with_interval(found.accuracy, found.ci)} (n = {found.n})"


def _ppo(numbers: CycleNumbers) -> list[Row]:
    """How PPO went, what it kept on its way, and how score and KL went together."""
    training = numbers.training
    rows: list[Row] = []
    if training is not None:
        rows += [*_rate_of_ppo(numbers), *watch_rows(training, _offsets(numbers))]
    for kept in numbers.snapshots:
        what = f"PM score {number(kept.score)} after {kept.samples} samples: `{kept.digest}`"
        rows.append((f"Snapshot at KL {kept.kl_nats:.3g} nats", what))
    return rows + law_rows(training.curve if training is not None else ())


def _usual(parameters: int | None) -> Rates | None:
    """Rates by the size of a model; a result that doesn't tell its size says nothing of them."""
    return None if parameters is None else rates_for(parameters)


def _rate_of_ppo(numbers: CycleNumbers) -> list[Row]:
    training, model = numbers.training, numbers.preference_model
    if training is None or training.learning_rate is None:
        return []
    # The preference model is the initial policy's trunk, and says how large that is.
    parameters = model.num_parameters if model is not None else None
    usual = _usual(parameters)
    adapters = bool(training.settings.get("lora_rank"))
    said = rate_said(training.learning_rate, usual.policy if usual else None, parameters, adapters=adapters)
    return [("PPO's learning rate", said)]


def _judged(numbers: CycleNumbers) -> list[Row]:
    """What the new policy is worth on held-out prompts."""
    rows: list[Row] = []
    after, best = numbers.evaluation, numbers.best_of_n
    if after is not None:
        rows += _evaluation(after, numbers.initial_evaluation, numbers.preference_model)
        rows += _live(numbers.live)
    if best is not None:
        rows.append((f"Best of {best.best_of} of the initial policy", f"PM score {number(best.pm_score)}"))
        rows += best_of_rows(best)
    return rows


def _evaluation(found: Evaluation, initial: Evaluation | None, model: PreferenceModelResults | None) -> list[Row]:
    before = initial.pm_score if initial is not None else None
    rows = [
        ("KL to the initial policy", f"{found.kl_nats:.3g} nats per reply"),
        ("PM score", f"{number(found.pm_score)} (initial policy: {number(before)})"),
    ]
    # Raw scores of two weeks' preference models can't be compared; above the project's reference set they can.
    offset = model.over_reference_set if model is not None else None
    if offset is not None:
        rows.append(("… above the reference set", number(found.pm_score - offset)))
    rows.append(("Reply length", f"{number(found.reply_tokens, '.1f')} tokens"))
    return rows + collapse_rows(found, initial)


def _live(found: LiveEvidence | None) -> list[Row]:
    """How the snapshot's score compares with that of what was live, where that was another policy than the start."""
    if found is None or found.is_initial or found.gain is None:
        return []
    return [("PM score over the live policy", with_interval(found.gain.gain, found.gain.ci, "+.3f"))]


def _elo(numbers: CycleNumbers) -> list[Row]:
    found = numbers.elo
    if found is None:
        # Of a cycle without a snapshot there is nothing to compare.
        return [("Elo against the initial policy", NOT_JUDGED)] if numbers.snapshot is not None else []
    rows = [("Elo against the initial policy", _elo_said(found))]
    live = found.against_live
    return rows if live is None else [*rows, ("… against the policy that was live before", _elo_said(live))]


def _elo_said(found: EloNumbers | EloAgainstLive) -> str:
    said = f"{found.wins} won, {found.losses} lost, {found.ties} alike"
    return f"{with_interval(found.elo, found.ci, '.0f')} ({said})"


def _data_check(found: DataCheckResults | None) -> list[Row]:
    if found is None:
        return []
    rows = [
        (
            "Repeats",
            f"{found.repeated_prompts} of {found.prompts} prompts stand in several comparisons; "
            f"{found.repeated_votes} votes of the same rater on the same replies; "
            f"{found.contradicted} pairs of replies decided both ways",
        ),
        ("Opening messages in both parts", str(found.openings_in_several_parts)),
    ]
    for overlap in found.against:
        by_part = ", ".join(f"{count} {part.replace('_', ' ')}" for part, count in overlap.by_part.items())
        rows.append(
            (
                f"Overlap with {overlap.file}",
                f"{overlap.prompts} prompts, {overlap.comparisons} comparisons"
                + (f" ({by_part})" if by_part else "")
                + f"; {overlap.texts_met} of its {overlap.texts} texts",
            )
        )
    return rows


def _calibration(found: Reliability) -> str:
    error = f"error {number(found.expected_calibration_error)} ({number(found.error_by_chance)} by chance)"
    if found.slope is None or found.slope_ci is None:
        return error
    return f"{_verdict(*found.slope_ci)}: slope {with_interval(found.slope, found.slope_ci, '.2f')}, {error}"


def _verdict(low: float, high: float) -> str:
    """What an interval of the slope of outcomes on gaps says."""
    if high < 0:
        return "the wrong way round"
    if high < 1:
        return "over-confident"
    return "under-confident" if low > 1 else "calibrated within the interval"


def _mistakes(numbers: CycleNumbers) -> list[str]:
    """The pairs that the preference model is most surely wrong about, by id; their texts are in the comparison set."""
    model = numbers.preference_model
    if model is None or not model.held_out.mistakes:
        return []
    lines = ["", "## Most confident mistakes of the preference model", ""]
    lines += [f"`orchestrator cycle show {numbers.cycle} --mistakes` prints their texts.", ""]
    lines += ["| comparison | source | question | better | worse | gap |", "|---|---|---|---|---|---|"]
    for pair in model.held_out.mistakes:
        scores = " | ".join(f"{score:.2f}" for score in (pair.better_score, pair.worse_score, pair.gap))
        lines.append(f"| {pair.id} | {pair.source} | {pair.question} | {scores} |")
    return lines


def _offsets(numbers: CycleNumbers) -> tuple[float, float] | None:
    """The offsets of the PM and of its twin, where both were measured, and on one reference set."""
    model, watcher = numbers.preference_model, numbers.watcher
    if model is None or watcher is None or model.reference is None or watcher.reference is None:
        return None
    if model.offset is None or watcher.offset is None or model.reference.sha256 != watcher.reference.sha256:
        return None
    return model.offset, watcher.offset


def _twin(watcher: PreferenceModelResults) -> str:
    """What the twin saw, how good it is, and what the split costs the model that PPO follows, in points of accuracy."""
    accuracy = f"accuracy {with_interval(watcher.held_out.accuracy, watcher.held_out.ci)}"
    twin = watcher.twin
    if not isinstance(twin, WatcherPart):
        return accuracy
    form = "+.1f"
    cost_ci = "" if twin.cost_ci is None else " " + interval([100 * bound for bound in twin.cost_ci], form)
    return (
        f"{accuracy} on {twin.num_watcher} comparisons of its own; the PM trained on "
        f"{twin.num_production} ({twin.production_share:.0%}), which costs it "
        f"{number(100 * twin.cost, form)}{cost_ci} points of accuracy ({twin.method})"
    )
