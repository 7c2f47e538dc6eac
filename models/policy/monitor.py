"""What looks on while PPO runs: the tripwires, a second preference model, and held-out comparisons.

`PolicyMonitor` brings models/policy/watch.py and models/policy/logp_accuracy.py to the loop of
models/jobs/train_policy.py. Nothing here changes a weight or draws a random number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from models.backbone.context import context_of
from models.chat.refusals import Refusals
from models.policy.logp_accuracy import accuracy_by_question, held_out_pairs, mean_logp_gaps, score_gaps
from models.policy.results import Interval, LastSignals, LogpAccuracy, LogpPoint, RolloutSignals, WatchResult
from models.policy.rollout import Rollout, RolloutCollector
from models.policy.settings import WatchSettings
from models.policy.watch import Watch, WatchState, rollout_signals, twin_gap
from models.preference.comparison_set import ComparisonSetError
from models.preference.model import PreferenceModel
from models.preference.results import Accuracy
from models.runtime.job import Job, JobError
from models.runtime.results import part_to_json


class MonitorState(TypedDict):
    """What a checkpoint holds of what looks on."""

    watch: WatchState
    logp_curve: list[Mapping[str, Any]]
    """Fields of `LogpPoint`."""


class PolicyMonitor:
    """Signals of each rollout, the reason to stop, and mean log-p accuracy beside its ceiling."""

    def __init__(
        self,
        job: Job,
        collector: RolloutCollector,
        settings: WatchSettings,
        *,
        logp_every: int,
        logp_pairs: int,
        load: Callable[[str, Path], PreferenceModel],
    ) -> None:
        """`load` gives the preference model of a role and folder (`Roles.preference_model`)."""
        self.collector, self.logp_every = collector, logp_every
        self.watch = Watch(settings)
        self.signals: RolloutSignals | None = None
        self.logp_curve: list[LogpPoint] = []
        chat = collector.chat
        self.watcher = None
        if "watcher" in job.inputs:
            self.watcher = load("watcher", job.input("watcher"))
            # As the training PM scores, so that the gap between the two is no matter of rounding.
            self.watcher.precision = collector.preference_model.precision
            self.watcher.chunk_tokens = collector.preference_model.chunk_tokens
        self.pairs, self.refusals = [], Refusals()
        if "comparisons" in job.inputs and logp_every:
            longest = min(context_of(collector.policy.model), collector.preference_model.max_tokens)
            try:
                self.pairs = held_out_pairs(job.input("comparisons"), chat, logp_pairs, longest, self.refusals)
            except ComparisonSetError as error:
                raise JobError(str(error)) from error
        self.logp_ceiling = (
            accuracy_by_question(self.pairs, score_gaps(collector.preference_model, self.pairs)) if self.pairs else {}
        )

    @property
    def calm(self) -> bool:
        """Whether the weights that wrote the last rollout are worth going back to."""
        return self.watch.calm

    def look(self, rollout: Rollout) -> RolloutSignals:
        """The signals of a rollout, the watcher's scores among them."""
        scores = None
        if self.watcher is not None:
            scores = self.collector.scores(rollout.prompts, rollout.texts, self.watcher)
        self.signals = rollout_signals(rollout, scores)
        return self.signals

    def rollout(self, rollout: Rollout, iteration: int, *, last: bool = False) -> str | None:
        """Look at a rollout; why training must stop, or None."""
        return self.watch.rollout(self.look(rollout), iteration, last=last)

    def learning(self, learned: dict[str, float], iteration: int) -> str | None:
        """Look at what learning did; why its steps must be given up, or None."""
        return self.watch.learning(learned, iteration)

    def recover(self, samples: int) -> None:
        """Forget what the weights showed that are given up, which had learned from more than so many replies."""
        self.watch.recover()
        self.logp_curve = [point for point in self.logp_curve if point.samples <= samples]

    def metrics(self, iteration: int, samples: int) -> dict[str, float]:
        """The last rollout's signals under `watch/`, with mean log-p accuracy where that is due."""
        assert self.signals is not None
        numbers = self.watch.metrics(self.signals)
        if self.pairs and iteration % self.logp_every == 0:
            accuracy = self.measure_logp_accuracy(samples)
            numbers |= {f"watch/logp_accuracy_{kind}": value for kind, value in accuracy.items()}
        return numbers

    def measure_logp_accuracy(self, samples: int) -> dict[str, float]:
        """Mean log-p accuracy of the policy as it is now, kept as a point of the curve with its 95 % interval."""
        collector = self.collector
        gaps = mean_logp_gaps(collector.policy, self.pairs, collector.chat.pad_id, collector.chunk_tokens)
        found = accuracy_by_question(self.pairs, gaps)
        accuracy = _accuracies(found)
        self.logp_curve.append(LogpPoint(samples, _intervals(found), **accuracy))
        return accuracy

    def curve_point(self) -> dict[str, float]:
        """What the training curve holds of the watcher: nothing where there is none."""
        signals, start = self.signals, self.watch.start
        if signals is None or start is None or signals.score_watcher is None:
            return {}
        return {"score_watcher": signals.score_watcher, "twin_gap": twin_gap(signals, start)}

    def watched(self) -> WatchResult:
        """What the wires saw, after the final policy's rollout was looked at."""
        end = None
        if self.signals is not None:
            end = LastSignals(**dataclasses.asdict(self.signals), twin_gap=self.curve_point().get("twin_gap"))
        return WatchResult(self.watch.stopped_by, tuple(self.watch.alarms), self.watch.start, end)

    def logp_accuracy(self, samples: int) -> LogpAccuracy | None:
        """Mean log-p accuracy along the run, the final policy's measured now; None where there are no pairs."""
        if not self.pairs:
            return None
        self.measure_logp_accuracy(samples)
        ceiling = self.logp_ceiling
        return LogpAccuracy(
            pairs={kind: measured.n for kind, measured in ceiling.items()},
            preference_model=_accuracies(ceiling),
            curve=tuple(self.logp_curve),
            dialogues={kind: measured.dialogues for kind, measured in ceiling.items()},
            preference_model_ci=_intervals(ceiling),
            refused=self.refusals.found(),
        )

    @property
    def state(self) -> MonitorState:
        """For the checkpoint."""
        return {"watch": self.watch.state, "logp_curve": [part_to_json(point) for point in self.logp_curve]}

    def restore(self, state: MonitorState) -> None:
        """Go on from a checkpoint."""
        self.watch.restore(state["watch"])
        self.logp_curve = [LogpPoint(**point) for point in state["logp_curve"]]


def _accuracies(found: Mapping[str, Accuracy]) -> dict[str, float]:
    return {kind: measured.accuracy for kind, measured in found.items() if measured.accuracy is not None}


def _intervals(found: Mapping[str, Accuracy]) -> dict[str, Interval]:
    return {kind: measured.ci for kind, measured in found.items()}
