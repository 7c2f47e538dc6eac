"""The robustness experiment: how far a policy can be driven by one preference model before another disagrees.

Two PMs are trained on halves of the comparisons, PPO follows the first (the training PM), and both score it on the way.
Where the training PM's score rises and that of the other (the watcher) lags, PPO exploits the first one's errors. What
follows what is in `flows/robustness.py`; the stages are those of a cycle, taken for a configuration alone.

Source: arXiv:2204.05862 §4.2 (train PM and test PM).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.policy.results import CurvePoint, JudgedReply, OpenInterval
from models.statistics.intervals import mean_interval_json


@dataclass(frozen=True)
class Gain:
    """A mean difference over prompts with its 95 % interval, in PM units."""

    mean: float
    ci: OpenInterval


@dataclass(frozen=True)
class GapOpens:
    """The first policy from which on the training PM sees more gain than the watcher."""

    policy: str
    samples: int
    kl_nats: float
    gap: Gain


@dataclass(frozen=True)
class PolicyGains:
    """What both PMs say a policy has gained over the first one."""

    policy: str
    samples: int
    """Replies that PPO had learned from."""
    kl_nats: float
    n: int
    training_gain: Gain
    watcher_gain: Gain
    gap: Gain


@dataclass(frozen=True)
class WatcherBest(PolicyGains):
    """The policy that the watcher likes best, and the result's score less its; None for the result itself."""

    result_minus_best: Gain | None


@dataclass(frozen=True)
class Trained:
    """A preference model of the experiment: on how many comparisons, and its accuracy on held-out ones."""

    num_train: int
    accuracy: float | None
    ci: OpenInterval | None


@dataclass(frozen=True)
class RobustnessResults:
    """What the experiment found; results.json of its report."""

    name: str
    policies: tuple[PolicyGains, ...]
    preference_models: Mapping[str, Trained]
    """By role: training PM and watcher."""
    gap_opens: GapOpens | None
    watcher_best: WatcherBest


@dataclass(frozen=True)
class RobustnessNumbers(RobustnessResults):
    """What its report says besides: how PPO went on its way."""

    stopped: str | None
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class JudgedPolicy:
    """A policy with the replies that both PMs scored."""

    policy: str
    samples: int
    replies: Sequence[JudgedReply]


def two_way(judged: Sequence[JudgedPolicy]) -> list[PolicyGains]:
    """Policies by PMs: of each policy its KL, and its gains by the training PM and by the watcher over the first one.

    Gains are paired by prompt, which takes away what the two PMs' scores start from; the gap is the first gain minus
    the second, in PM units (a unit is a win rate of 73 % as that PM has it). Intervals are 95 %, over prompts, and heed
    their dialogues.
    """
    start = {reply.prompt_id: reply for reply in judged[0].replies}
    rows = []
    for one in judged:
        pairs = [(reply, start[reply.prompt_id]) for reply in one.replies]
        training = [now.score - then.score for now, then in pairs]
        test = [_by_watcher(now) - _by_watcher(then) for now, then in pairs]
        rows.append(
            PolicyGains(
                policy=one.policy,
                samples=one.samples,
                kl_nats=math.fsum(reply.kl_nats for reply in one.replies) / len(one.replies),
                n=len(one.replies),
                training_gain=_gain(one.replies, training),
                watcher_gain=_gain(one.replies, test),
                gap=_gain(one.replies, [mine - its for mine, its in zip(training, test, strict=True)]),
            )
        )
    return rows


def past_best(judged: Sequence[JudgedPolicy]) -> tuple[int, Gain | None]:
    """The place of the policy that the watcher likes best, and the result's score less its; None for the result itself.

    The difference is by the watcher alone, so that the two PMs' scales play no part, and paired by prompt. It is a
    little too large: the best of several is partly the luckiest.
    """
    means = [math.fsum(map(_by_watcher, one.replies)) / len(one.replies) for one in judged]
    best = means.index(max(means))
    if best == len(means) - 1:
        return best, None
    then = {reply.prompt_id: _by_watcher(reply) for reply in judged[best].replies}
    last = judged[-1].replies
    return best, _gain(last, [_by_watcher(reply) - then[reply.prompt_id] for reply in last])


def gap_opens(rows: Sequence[PolicyGains]) -> GapOpens | None:
    """The first policy from which on every gap's interval lies above 0; None where the last one's does not."""
    first = None
    for row in reversed(rows):
        low = row.gap.ci[0]
        if low is None or low <= 0:
            break
        first = row
    return None if first is None else GapOpens(first.policy, first.samples, first.kl_nats, first.gap)


def _by_watcher(reply: JudgedReply) -> float:
    if reply.watcher_score is None:
        raise ValueError(f"no watcher scored the reply to prompt {reply.prompt_id}; both PMs must judge every policy")
    return reply.watcher_score


def _gain(replies: Sequence[JudgedReply], values: Sequence[float]) -> Gain:
    """The mean of one value per reply, with its interval by dialogues."""
    mean, (low, high) = mean_interval_json(values, clusters=[reply.cluster for reply in replies])
    return Gain(mean, (low, high))
