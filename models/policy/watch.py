"""PPO is watched, and stopped: what each rollout shows, and the wires that end a run before it is spoilt.

`RolloutSignals` (models/policy/results.py) are the numbers of one rollout, `WatchSettings` the wires, `Watch` remembers
where the run began and says when a wire is tripped. docs/guides/when-it-stops.md says what each wire means and what to
do about it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, NotRequired, TypedDict

from models.policy.results import RaisedAlarm, RolloutSignals
from models.policy.rollout import Rollout
from models.policy.settings import WatchSettings
from models.statistics.intervals import student_quantile
from models.statistics.reply_signals import duplicates, most_frequent, repeated_ngrams

# A KL estimate this close to 0 may be rounding, however small its standard error: two layouts of the same weights
# differ by about 1e-6 nats a token in float32, and by the same amount and sign in every rollout.
KL_ROUNDING_NATS = 1e-3
# Rollouts over which a small bias of the KL adds up until it is seen.
DRIFT_ROLLOUTS = 10
# Log-probs that moved by so many times the bound of `ratio` stop at once: a policy that a step destroyed says one thing
# with certainty, and has no gradient that could trip the wire a second time.
SURE = 2.0
# A twin gap counts as far as it exceeds its own noise: two standard errors. So do the rises.
GAP_ERRORS = 2.0


def rollout_signals(rollout: Rollout, watcher_scores: Sequence[float] | None = None) -> RolloutSignals:
    """The signals of a rollout, with the scores of a second preference model where there is one."""
    count = len(rollout.texts)
    kl, kl_error = mean_and_error(rollout.kl_nats.tolist())
    scores = rollout.scores.tolist()
    score_watcher = difference_variance = None
    if watcher_scores is not None:
        score_watcher = math.fsum(watcher_scores) / count
        _, error = mean_and_error([mine - its for mine, its in zip(scores, watcher_scores, strict=True)])
        difference_variance = error**2 * count
    return RolloutSignals(
        kl_nats=kl,
        kl_error=kl_error,
        replies=count,
        entropy=float(rollout.entropies[rollout.response_mask].mean()),
        reply_tokens=float(rollout.reply_tokens.float().mean()),
        truncated=sum(rollout.truncated) / count,
        repeated_ngrams=math.fsum(repeated_ngrams(completion.ids) for completion in rollout.completions) / count,
        duplicates=duplicates(rollout.texts),
        stock_reply=most_frequent(rollout.texts)[1],
        score=math.fsum(scores) / count,
        score_watcher=score_watcher,
        score_difference_variance=difference_variance,
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; infinite for one value, which says nothing about its spread.

    1, 2, 3, 4: mean 2.5, variance 5/3, error sqrt(5/3 / 4) = 0.6455.
    """
    count = len(values)
    # Not fsum: it raises on an overflow or a NaN, which here is the finding itself.
    mean = sum(values) / count
    if count < 2:
        return mean, math.inf
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


@cache
def impossible_below(errors: float, replies: int) -> float:
    """Standard errors below 0 at which a mean KL of so many replies is impossible.

    `errors` for a large rollout. A small one doesn't know its own spread well: it gets the bound of Student's t
    distribution with the same chance of a false alarm, which at 4 is 1 in 31,600. 64 replies: 4.28; 16: 5.49.
    """
    chance = 2 * NormalDist().cdf(-errors)
    return max(errors, student_quantile(1 - chance, replies - 1))


@cache
def unlikely_sum_nats(errors: float) -> float:
    """How far below 0 the sum of replies' log-ratios lies with the chance of a normal mean `errors` below 0 at most.

    Replies of pi have E[pi_0/pi] = 1, and so has the product over any number of them: by Markov's inequality the sum of
    log pi/pi_0 is below -s with a chance of at most exp(-s), however it is distributed. A standard error knows nothing
    of what was not drawn: where one reply in a hundred carries the KL, a rollout without it lies below 0 with hardly
    any spread. At 4: 10.36 nats; over 64 replies a mean of -0.162, over ten such rollouts of -0.0162.
    """
    return -math.log(NormalDist().cdf(-errors))


@dataclass(frozen=True)
class Alarm:
    """A wire that a rollout is beyond, and what was found, in words."""

    wire: str
    found: str
    sure: bool = False
    """Too far beyond the bound for noise: it needs no patience."""


class WatchState(TypedDict):
    """What a checkpoint holds of the wires: plain numbers and texts."""

    start: Mapping[str, Any] | None
    """Fields of `RolloutSignals`."""
    in_a_row: dict[str, int]
    learning_in_a_row: NotRequired[dict[str, int]]
    """Not in a checkpoint of before learning had patience."""
    alarms: list[Mapping[str, Any]]
    """Fields of `RaisedAlarm`."""
    stopped_by: str | None
    recent_kls: list[list[float]]


class Watch:
    """Looks at every rollout and every round of learning of one run; `state` goes into the checkpoint."""

    def __init__(self, settings: WatchSettings) -> None:
        self.settings = settings
        self.start: RolloutSignals | None = None
        self.in_a_row: dict[str, int] = {}
        self.learning_in_a_row: dict[str, int] = {}
        self.alarms: list[RaisedAlarm] = []
        self.stopped_by: str | None = None
        self._recent_kls: list[list[float]] = []

    @property
    def calm(self) -> bool:
        """Whether no wire is beyond its bound at the moment: the weights that wrote the last rollout are good."""
        return not self.in_a_row and not self.learning_in_a_row

    def rollout(self, signals: RolloutSignals, iteration: int, *, last: bool = False) -> str | None:
        """Why training must stop after this rollout, or None. `iteration` counts from 0.

        Nothing follows the `last` rollout that could confirm an alarm, so that there one is enough.
        """
        if not signals.finite:
            return self._stop(Alarm("not_finite", "KL, entropy or score is not a finite number"), iteration)
        if self.start is None:
            self.start = signals
        alarms = [*self._kl_alarms(signals), *self._collapse_alarms(signals), *self._twin_alarms(signals)]
        self.in_a_row = self._counted(alarms, self.in_a_row, iteration)
        return self._lasting(alarms, self.in_a_row, iteration, last)

    def learning(self, learned: dict[str, float], iteration: int) -> str | None:
        """Why training must stop after learning from a rollout, or None; the steps taken are then given up."""
        alarms = self._learning_alarms(learned)
        self.learning_in_a_row = self._counted(alarms, self.learning_in_a_row, iteration)
        return self._lasting(alarms, self.learning_in_a_row, iteration)

    def metrics(self, signals: RolloutSignals) -> dict[str, float]:
        """A rollout's line in metrics.jsonl, relative to the start where that says more."""
        start = self.start or signals
        numbers = {
            "watch/kl_errors": signals.kl_nats / signals.kl_error if signals.kl_error > 0 else 0.0,
            "watch/entropy_share": _ratio(signals.entropy, start.entropy),
            "watch/length_factor": _ratio(signals.reply_tokens, start.reply_tokens),
            "watch/repeated_ngrams": signals.repeated_ngrams,
            "watch/duplicates": signals.duplicates,
            "watch/stock_reply": signals.stock_reply,
            "watch/wires_beyond": float(len(self.in_a_row) + len(self.learning_in_a_row)),
        }
        if signals.score_watcher is not None:
            numbers["watch/score_watcher"] = signals.score_watcher
            numbers["watch/twin_gap"] = twin_gap(signals, start)
        return numbers

    @property
    def state(self) -> WatchState:
        """Everything that is remembered."""
        return {
            "start": None if self.start is None else dataclasses.asdict(self.start),
            "in_a_row": self.in_a_row,
            "learning_in_a_row": self.learning_in_a_row,
            "alarms": [dataclasses.asdict(alarm) for alarm in self.alarms],
            "stopped_by": self.stopped_by,
            "recent_kls": self._recent_kls,
        }

    def restore(self, state: WatchState) -> None:
        """Go on from a checkpoint."""
        self.start = None if state["start"] is None else RolloutSignals(**state["start"])
        self.in_a_row, self.alarms = state["in_a_row"], [RaisedAlarm(**alarm) for alarm in state["alarms"]]
        self.stopped_by, self._recent_kls = state["stopped_by"], state["recent_kls"]
        self.learning_in_a_row = state.get("learning_in_a_row", {})

    def recover(self) -> None:
        """Forget what the weights that were given up showed; the alarms stay, and so does the start."""
        self.in_a_row, self.learning_in_a_row, self._recent_kls = {}, {}, []
        self.stopped_by = None

    # The wires

    def _kl_alarms(self, signals: RolloutSignals) -> list[Alarm]:
        """A KL below 0 is impossible, unless replies were not sampled from the policy whose log-probs are read.

        That is what stale weights in the sampler, a truncated distribution, or a mask that counts the wrong tokens
        look like. A wrong temperature shows only once policy and reference differ.
        """
        settings, kl = self.settings, signals.kl_nats
        found = []
        if settings.max_start_kl_nats and signals is self.start and abs(kl) > settings.max_start_kl_nats:
            bound = f"max_start_kl_nats {settings.max_start_kl_nats:g}"
            found.append(Alarm("start_kl", f"KL {kl:.3g} nats before the first step is not 0 within {bound}"))
        if not settings.impossible_kl_errors or not math.isfinite(signals.kl_error):
            return found
        bound = f"impossible_kl_errors {settings.impossible_kl_errors:g}"
        needed = impossible_below(settings.impossible_kl_errors, signals.replies)
        by_chance = unlikely_sum_nats(settings.impossible_kl_errors) / signals.replies
        if kl < -max(KL_ROUNDING_NATS, by_chance, needed * signals.kl_error):
            found.append(Alarm("impossible_kl", f"KL {kl:.3g} ± {signals.kl_error:.2g} nats is below 0 by {bound}"))
        self._recent_kls = [*self._recent_kls, [kl, signals.kl_error**2]][-DRIFT_ROLLOUTS:]
        if len(self._recent_kls) == DRIFT_ROLLOUTS:
            mean = math.fsum(kl for kl, _ in self._recent_kls) / DRIFT_ROLLOUTS
            error = math.sqrt(math.fsum(square for _, square in self._recent_kls)) / DRIFT_ROLLOUTS
            if mean < -max(KL_ROUNDING_NATS, by_chance / DRIFT_ROLLOUTS, settings.impossible_kl_errors * error):
                text = f"KL {mean:.3g} ± {error:.2g} nats over {DRIFT_ROLLOUTS} rollouts is below 0 by {bound}"
                found.append(Alarm("kl_drift", text))
        return found

    def _collapse_alarms(self, signals: RolloutSignals) -> list[Alarm]:
        settings, start = self.settings, self.start or signals
        found = []
        share = _ratio(signals.entropy, start.entropy)
        if share < settings.min_entropy_share:
            text = f"entropy {signals.entropy:.3g} nats per token is {share:.0%} of the start's {start.entropy:.3g}"
            found.append(Alarm("entropy", f"{text}, below min_entropy_share {settings.min_entropy_share:g}"))
        factor = _ratio(signals.reply_tokens, start.reply_tokens)
        if settings.max_length_factor and max(factor, 1 / factor) > settings.max_length_factor:
            text = f"replies of {signals.reply_tokens:.3g} tokens against {start.reply_tokens:.3g} at the start"
            found.append(Alarm("length", f"{text}, beyond max_length_factor {settings.max_length_factor:g}"))
        for wire, what, name, bound, now, then in (
            ("repetition", "of 4-grams repeat earlier ones of their reply", "max_repetition_rise",
             settings.max_repetition_rise, signals.repeated_ngrams, start.repeated_ngrams),
            ("duplicates", "of replies equal another one", "max_duplicate_rise",
             settings.max_duplicate_rise, signals.duplicates, start.duplicates),
            ("truncation", "of replies were cut off at the cap", "max_truncation_rise",
             settings.max_truncation_rise, signals.truncated, start.truncated),
        ):  # fmt: skip
            noise = GAP_ERRORS * rise_error(now, signals.replies, then, start.replies)
            risen = rise_of_room(now, then)
            if bound and risen > bound and now - then > noise:
                text = f"{now:.0%} {what}, {then:.0%} at the start: {risen:.0%} of the room above it"
                found.append(Alarm(wire, f"{text}; {name} is {bound:g}"))
        return found

    def _twin_alarms(self, signals: RolloutSignals) -> list[Alarm]:
        settings, start = self.settings, self.start or signals
        if not settings.max_twin_gap or signals.score_watcher is None:
            return []
        gap, error = twin_gap(signals, start), twin_gap_error(signals, start)
        if not gap - GAP_ERRORS * error > settings.max_twin_gap:
            return []
        text = f"the training PM's gain exceeds the watcher's by {gap:.3g} ± {error:.2g}"
        return [Alarm("twin_gap", f"{text}, above max_twin_gap {settings.max_twin_gap:g}")]

    def _learning_alarms(self, learned: dict[str, float]) -> list[Alarm]:
        settings, found = self.settings, []
        first, moved, clipped = (
            learned[name] for name in ("val/ratio_first", "watch/ratio_error", "watch/clip_fraction")
        )
        if settings.max_first_ratio_error and abs(first - 1) > settings.max_first_ratio_error:
            text = f"the first minibatch's ratio was {first:.4g}, expected 1 within {settings.max_first_ratio_error:g}"
            found.append(Alarm("first_ratio", text))
        if settings.max_ratio_error and moved > settings.max_ratio_error:
            text = f"log-probs moved by {moved:.3g} nats a token, above max_ratio_error {settings.max_ratio_error:g}"
            found.append(Alarm("ratio", text, sure=moved > SURE * settings.max_ratio_error))
        if settings.max_clip_fraction and clipped > settings.max_clip_fraction:
            text = f"{clipped:.0%} of tokens were clipped, above max_clip_fraction {settings.max_clip_fraction:g}"
            found.append(Alarm("clip_fraction", text))
        return found

    def _counted(self, alarms: Sequence[Alarm], before: dict[str, int], iteration: int) -> dict[str, int]:
        """How often in a row each of these wires has been beyond its bound now; the alarms are kept."""
        self.alarms += [RaisedAlarm(iteration + 1, alarm.wire, alarm.found) for alarm in alarms]
        return {alarm.wire: before.get(alarm.wire, 0) + 1 for alarm in alarms}

    def _lasting(
        self, alarms: Sequence[Alarm], in_a_row: dict[str, int], iteration: int, last: bool = False
    ) -> str | None:
        """Why training must stop: the first alarm that has lasted for long enough."""
        for alarm in alarms:
            needed = 1 if last or alarm.sure or alarm.wire in AT_ONCE else self.settings.patience
            if in_a_row[alarm.wire] >= needed:
                return self._reason(alarm, iteration)
        return None

    def _stop(self, alarm: Alarm, iteration: int) -> str:
        self.alarms.append(RaisedAlarm(iteration + 1, alarm.wire, alarm.found))
        return self._reason(alarm, iteration)

    def _reason(self, alarm: Alarm, iteration: int) -> str:
        self.stopped_by = alarm.wire
        return f"{alarm.found} (iteration {iteration + 1})"


AT_ONCE = ("start_kl", "impossible_kl", "kl_drift", "first_ratio")
"""Wires that ask for no patience: exact, or tested against their own noise, and waiting cannot heal them."""


def twin_gap(signals: RolloutSignals, start: RolloutSignals) -> float:
    """Gain of the training PM's mean score since the start, minus the watcher's gain; 0 at the start.

    Scores 1 → 4 and 2 → 3: gains 3 and 1, gap 2.

    Source: arXiv:2204.05862 §4.2 (train PM against test PM).
    """
    if signals.score_watcher is None or start.score_watcher is None:
        raise ValueError("no watcher scored this rollout")
    return (signals.score - start.score) - (signals.score_watcher - start.score_watcher)


def twin_gap_error(signals: RolloutSignals, start: RolloutSignals) -> float:
    """Standard error of the twin gap: of two independent means of differences of scores."""
    then, now = start.score_difference_variance, signals.score_difference_variance
    return math.sqrt((then or 0.0) / start.replies + (now or 0.0) / signals.replies)


def rise_of_room(now: float, then: float) -> float:
    """How much of the way from a share at the start to 1 it has gone; 0 where it began at 1.

    From 0.81 to 1: all of it. From 0.1 to 0.64: 0.54 / 0.9 = 0.6.
    """
    return (now - then) / (1 - then) if then < 1 else 0.0


def rise_error(now: float, replies: int, then: float, replies_then: int) -> float:
    """Largest standard error of the rise of a mean of numbers between 0 and 1, where in truth nothing rose.

    Numbers between 0 and 1 with mean p have a variance of p·(1 − p) at most, which a yes or no has. 26 of 32 and 32 of
    32: p = 58/64, sqrt(p·(1 − p)·2/32) = 0.073, of which the rise of 0.1875 is 2.6.

    Source: Bhatia and Davis 2000, "A better bound on the variance".
    """
    both = (now * replies + then * replies_then) / (replies + replies_then)
    return math.sqrt(max(0.0, both * (1 - both)) * (1 / replies + 1 / replies_then))


def _ratio(now: float, then: float) -> float:
    """How much of the start is left; a start of 0 can't shrink."""
    return now / then if then > 0 else 1.0
