"""The demo's report: what each cycle brought, judged by the truth that only this package knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import ModelSummary
from models.runtime.results import result_from_json
from orchestrator.cycles.cost import StageTime, stage_times
from orchestrator.data.comparison_set import ComparisonSetResults
from orchestrator.database import database
from orchestrator.judging.evaluations import read_replies
from orchestrator.reports.cycle import evaluation_row
from orchestrator.reports.pictures.style import NORMAL, finish
from orchestrator.settings import Settings
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.world.demo import EndedCycle, measured_elo
from orchestrator.world.world import TrueScores, true_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Interval = list[float]


@dataclass(frozen=True)
class Entry:
    """One row of the report: the initial policy (cycle 0), or the snapshot of a cycle.

    `pm_score` is the mean score of the replies to the evaluation requests by the cycle's preference model, minus that
    of the initial policy: scores of two preference models have no common zero. Entry 0 is 0 by definition.
    """

    cycle: int
    comparisons: int
    pm_accuracy: float | None
    pm_accuracy_ci: Interval | None
    kl_nats: float
    pm_score: float
    true_helpful: float
    true_harmless: float
    elo: float
    elo_ci: Interval
    snapshot: str


@dataclass(frozen=True)
class BestOf:
    """The best of n replies of the initial policy by the last preference model: what choosing alone achieves."""

    n: int
    kl_nats: float
    pm_score: float
    true_helpful: float
    true_harmless: float


@dataclass(frozen=True, kw_only=True)
class StageOfCycle(StageTime):
    """A stage, and the number of its cycle."""

    cycle: int


@dataclass(frozen=True)
class Report:
    """Everything the demo found."""

    seed: int
    seconds: float
    cycles: list[Entry]
    best_of: BestOf | None
    stages: list[StageOfCycle]
    """Of all cycles, as `orchestrator cycle show` has them under "Time"."""

    @property
    def improved(self) -> bool:
        """Whether the last policy's Elo interval lies above the initial policy's, which is 0."""
        return self.cycles[-1].elo_ci[0] > 0

    def to_json(self) -> dict[str, Any]:
        """The content of demo-report.json."""
        return asdict(self)


def gather(ended: list[EndedCycle], seed: int, seconds: float) -> Report:
    """Read what the cycles measured, and judge the replies of their evaluations by the truth."""
    entries: list[Entry] = []
    best_of: BestOf | None = None
    settings = Settings.from_env()
    store = ArtifactStore(settings.artifact_url, settings.home / "cache")
    with database() as session:
        for cycle in ended:
            initial = _evaluation(session, cycle.id, "policy", cycle.initial_id)
            snapshot = _evaluation(session, cycle.id, "policy", cycle.snapshot_id)
            if not entries:
                entries.append(_initial_entry(session, cycle, initial, store))
            entries.append(_entry(session, cycle, snapshot, initial, store))
            chosen = evaluation_row(session, cycle.id, "best_of_n", cycle.initial_id)
            if chosen is not None:
                best_of = _best_of(chosen, initial, store, session)
        stages = [
            StageOfCycle(**vars(row), cycle=cycle.number) for cycle in ended for row in stage_times(session, cycle.id)
        ]
    return Report(seed, seconds, entries, best_of, stages)


def _initial_entry(session: Session, cycle: EndedCycle, initial: t.Evaluation, store: ArtifactStore) -> Entry:
    true = _true_scores(session, initial, store)
    digest = session.get_one(t.Artifact, cycle.initial_id).digest
    return Entry(0, 0, None, None, 0.0, 0.0, true.helpful, true.harmless, 0.0, [0.0, 0.0], digest)


def _entry(
    session: Session, cycle: EndedCycle, snapshot: t.Evaluation, initial: t.Evaluation, store: ArtifactStore
) -> Entry:
    true = _true_scores(session, snapshot, store)
    results = _results(session, cycle.id, "preference_model")
    held_out = result_from_json(ModelSummary, results, where=f"the preference model of cycle {cycle.number}").held_out
    found = _results(session, cycle.id, "comparison_set")
    comparison_set = result_from_json(ComparisonSetResults, found, where=f"the set of cycle {cycle.number}")
    # Of a snapshot with the initial policy's weights nobody measured it: it is 0, as the initial policy's.
    elo = measured_elo(cycle)
    return Entry(
        cycle=cycle.number,
        comparisons=comparison_set.num_comparisons,
        pm_accuracy=held_out.accuracy,
        pm_accuracy_ci=list(held_out.ci),
        kl_nats=snapshot.numbers["kl_nats"],
        pm_score=snapshot.numbers["pm_score"] - initial.numbers["pm_score"],
        true_helpful=true.helpful,
        true_harmless=true.harmless,
        elo=elo.elo if elo else 0.0,
        elo_ci=list(elo.ci) if elo else [0.0, 0.0],
        snapshot=session.get_one(t.Artifact, cycle.snapshot_id).digest,
    )


def _best_of(chosen: t.Evaluation, initial: t.Evaluation, store: ArtifactStore, session: Session) -> BestOf:
    true = _true_scores(session, chosen, store)
    numbers = chosen.numbers
    gain = numbers["pm_score"] - initial.numbers["pm_score"]
    return BestOf(numbers["best_of"], numbers["kl_nats"], gain, true.helpful, true.harmless)


def _evaluation(session: Session, cycle_id: int, kind: str, subject_id: int) -> t.Evaluation:
    found = evaluation_row(session, cycle_id, kind, subject_id)
    assert found is not None, "a cycle that was decided on has evaluated both policies"
    return found


def _true_scores(session: Session, evaluation: t.Evaluation, store: ArtifactStore) -> TrueScores:
    assert evaluation.artifact_id is not None, "an evaluation of a policy has its replies"
    folder = store.fetch(session.get_one(t.Artifact, evaluation.artifact_id).digest)
    return true_scores((judged.messages[-1]["content"], judged.reply) for judged in read_replies(folder))


def _results(session: Session, cycle_id: int, kind: str) -> Mapping[str, Any]:
    """Results of the newest artifact of the kind that a stage of the cycle ended with."""
    return session.scalars(
        select(t.Artifact.results)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Artifact.kind == kind, ~ledger.is_watcher())
        .order_by(t.Stage.id.desc())
        .limit(1)
    ).one()


def table(report: Report) -> str:
    """The table that the demo ends with."""
    head = ("cycle", "comparisons", "PM accuracy", "KL", "PM score", "helpful", "harmless", "Elo against initial")
    rows = [head]
    for entry in report.cycles:
        accuracy = "–"
        if entry.pm_accuracy is not None and entry.pm_accuracy_ci is not None:
            low, high = entry.pm_accuracy_ci
            accuracy = f"{entry.pm_accuracy:.3f} ± {(high - low) / 2:.3f}"
        elo = f"{entry.elo:+.0f} [{entry.elo_ci[0]:+.0f}, {entry.elo_ci[1]:+.0f}]" if entry.cycle else "0"
        rows.append(
            (
                str(entry.cycle) if entry.cycle else "initial",
                str(entry.comparisons),
                accuracy,
                f"{entry.kl_nats:.2f}",
                f"{entry.pm_score:+.2f}",
                f"{entry.true_helpful:.3f}",
                f"{entry.true_harmless:.3f}",
                elo,
            )
        )
    best = report.best_of
    if best is not None:
        rows.append(
            (
                f"best of {best.n}",
                "–",
                "–",
                f"{best.kl_nats:.2f}",
                f"{best.pm_score:+.2f}",
                f"{best.true_helpful:.3f}",
                f"{best.true_harmless:.3f}",
                "–",
            )
        )
    return _aligned(rows) + (
        "\nPM score: by the cycle's own preference model, less the initial policy's. Helpful and harmless: the truth, "
        "0 to 1.\nElo: from raters' comparisons with the initial policy alone; 95 % intervals."
        + (f"\nBest of {best.n}: the initial policy's best reply by the last preference model." if best else "")
    )


def write(report: Report, folder: Path) -> None:
    """Write demo-report.json and demo-report.png."""
    (folder / "demo-report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    draw(report, folder / "demo-report.png")


def draw(report: Report, file: Path) -> None:
    """Four panels over the cycles: truth, Elo, PM accuracy, and PM score against KL."""
    picture(report).savefig(file, dpi=120)


def picture(report: Report) -> Figure:
    """The figure that `draw` writes. Legends lie beside their panels: a name beside its point met its neighbour's."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    figure.suptitle(f"Iterated RLHF in the small world, seed {report.seed}")
    truth, elo, accuracy, score = figure.subplots(2, 2).flat
    _draw_truth(truth, report)
    trained = [entry for entry in report.cycles if entry.pm_accuracy is not None]
    elo.axhline(0, color="grey", linewidth=1)
    _with_intervals(elo, trained, lambda e: e.elo, lambda e: e.elo_ci)
    finish(elo, "Elo against the initial policy", "cycle", "Elo, 95 % interval")
    accuracy.axhline(0.5, color="grey", linewidth=1)
    _with_intervals(accuracy, trained, lambda e: e.pm_accuracy or 0.0, lambda e: e.pm_accuracy_ci or [0.0, 0.0])
    accuracy.set_ylim(0.4, 1)
    finish(accuracy, "Preference model, held-out accuracy", "cycle", "accuracy, 95 % interval")
    _draw_scores(score, report)
    last = report.cycles[-1].cycle
    for panel in (truth, elo, accuracy):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlim(-0.3, last + 0.3)
        panel.set_xlabel("cycle", fontsize=NORMAL)
    return figure


def _draw_truth(panel: Axes, report: Report) -> None:
    numbers = [entry.cycle for entry in report.cycles]
    panel.plot(numbers, [entry.true_helpful for entry in report.cycles], "o-", label="helpful", color="tab:blue")
    panel.plot(numbers, [entry.true_harmless for entry in report.cycles], "s-", label="harmless", color="tab:orange")
    best = report.best_of
    if best is not None:
        panel.axhline(best.true_helpful, color="tab:blue", linestyle=":", linewidth=1)
        panel.axhline(best.true_harmless, color="tab:orange", linestyle=":", linewidth=1)
        panel.plot([], [], color="grey", linestyle=":", label=f"best of {best.n} of the initial policy")
    panel.set_ylim(0, 1)
    finish(panel, "True score of replies", "cycle", "mean, 0 to 1", legend="above")


def _draw_scores(panel: Axes, report: Report) -> None:
    """A point with its name for each policy."""
    markers = "osD^vP*<>hX"
    for number, entry in enumerate(report.cycles):
        name = f"cycle {entry.cycle}" if entry.cycle else "initial policy"
        panel.plot([entry.kl_nats], [entry.pm_score], markers[number % len(markers)], label=name)
    best = report.best_of
    if best is not None:
        panel.plot([best.kl_nats], [best.pm_score], "x", color="black", label=f"best of {best.n}")
    panel.margins(0.15)
    finish(
        panel, "PM score against distance", "KL to the initial policy, nats a reply", "PM score gain", legend="above"
    )


def _with_intervals(
    panel: Any, entries: list[Entry], value: Callable[[Entry], float], interval: Callable[[Entry], Interval]
) -> None:
    values = [value(entry) for entry in entries]
    below = [max(0.0, at - interval(entry)[0]) for at, entry in zip(values, entries, strict=True)]
    above = [max(0.0, interval(entry)[1] - at) for at, entry in zip(values, entries, strict=True)]
    numbers = [entry.cycle for entry in entries]
    panel.errorbar(numbers, values, yerr=[below, above], fmt="o-", capsize=4, color="tab:purple")


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])
