"""Each tripwire catches the fault that it is there for, whatever the seed: 20 times of 20, 2 of them in the fast suite.

Faults of learning are planted in PPO itself, those of the replies in the rollouts that the watch is shown.
"""

import math
import random
from dataclasses import replace

import pytest

from models.policy.results import PPOResult, RolloutSignals
from models.policy.settings import WatchSettings
from models.policy.watch import Watch, mean_and_error
from models.runtime.results import result_from_json
from tests.models.ppo_runs import results

SEEDS = [seed if seed < 2 else pytest.param(seed, marks=pytest.mark.long) for seed in range(20)]
LEAVES_RUN = {"max_recoveries": 0}
REPLIES = 64
HEALTHY = RolloutSignals(
    kl_nats=0.0,
    kl_error=0.0,
    replies=REPLIES,
    entropy=2.0,
    reply_tokens=14.0,
    truncated=0.05,
    repeated_ngrams=0.02,
    duplicates=0.1,
    stock_reply=0.05,
    score=0.0,
    score_watcher=0.0,
    score_difference_variance=1.0,
)


def stopped_by(train, seed, **settings):
    wires = settings.pop("watch", {}) | LEAVES_RUN
    out = train(str(seed), seed=seed, iterations=4, watch=wires, **settings)
    run = result_from_json(PPOResult, results(out), where="the run")
    return "not_finite" if run.stopped and run.watch.stopped_by is None else run.watch.stopped_by


@pytest.mark.parametrize("seed", SEEDS)
def test_a_learning_rate_a_hundred_times_too_large_trips_ratio(train, seed):
    assert stopped_by(train, seed, learning_rate=0.3, watch={"min_entropy_share": 0.0}) == "ratio"


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_times_too_many_epochs_trip_clip_fraction(train, seed):
    assert stopped_by(train, seed, epochs=20, watch={"max_ratio_error": 0.0}) == "clip_fraction"


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_that_overflow_trip_not_finite(train, seed):
    assert stopped_by(train, seed, learning_rate=1e30) == "not_finite"


def noisy(signals, generator):
    """The signals of another rollout of the same policy: shares of REPLIES replies, means of as many."""
    drawn = {
        name: sum(generator.random() < getattr(signals, name) for _ in range(REPLIES)) / REPLIES
        for name in ("truncated", "repeated_ngrams", "duplicates")
    }
    means = {name: getattr(signals, name) * generator.gauss(1.0, 0.05) for name in ("entropy", "reply_tokens")}
    scores = {name: getattr(signals, name) + generator.gauss(0.0, 0.1) for name in ("score", "score_watcher")}
    return replace(signals, **drawn, **means, **scores)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("wire", "fault"),
    [
        ("entropy", {"entropy": 0.1}),
        ("length", {"reply_tokens": 120.0}),
        ("length", {"reply_tokens": 1.5}),
        ("repetition", {"repeated_ngrams": 0.9}),
        ("duplicates", {"duplicates": 0.95}),
        ("truncation", {"truncated": 0.95}),
        ("twin_gap", {"score": 4.0}),
    ],
)
def test_a_collapse_is_found_in_its_second_rollout(wire, fault, seed):
    generator, watch = random.Random(f"{wire} {seed}"), Watch(WatchSettings())
    for iteration in range(20):
        assert watch.rollout(noisy(HEALTHY, generator), iteration) is None
    assert watch.alarms == []
    collapsed = replace(HEALTHY, **fault)
    assert watch.rollout(noisy(collapsed, generator), 20) is None
    assert watch.rollout(noisy(collapsed, generator), 21) is not None
    assert watch.stopped_by == wire


# Replies of the reference, read with a policy that has learned: a sampler with old weights. A large difference is
# found at once; of a small one, 0.07 nats a reply or 1.5 standard errors of a rollout, ten rollouts tell, or one by
# chance.
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("wires", "learned", "within"),
    [
        (("impossible_kl",), [0.8, 0.15, 0.05], 1),
        (("kl_drift", "impossible_kl"), [0.51, 0.33, 0.16], 40),
    ],
)
def test_stale_weights_in_the_sampler_are_found(wires, learned, within, seed):
    generator, old = random.Random(f"{wires} {seed}"), [0.45, 0.35, 0.2]
    ratios = [math.log(a / b) for a, b in zip(learned, old, strict=True)]
    watch = Watch(WatchSettings(max_start_kl_nats=0))
    for iteration in range(within):
        kl, error = mean_and_error([sum(generator.choices(ratios, old, k=8)) for _ in range(REPLIES)])
        if watch.rollout(replace(HEALTHY, kl_nats=kl, kl_error=error), iteration):
            break
    assert watch.stopped_by in wires


@pytest.mark.parametrize("seed", range(20))
def test_log_probs_that_disagree_are_found_at_once(seed):
    # Rounding of a half-precision format, 1 % of a nat a token and always to one side.
    shift = random.Random(seed).choice((-1, 1)) * 0.011
    watch = Watch(WatchSettings())
    numbers = {"val/ratio_first": math.exp(shift), "watch/ratio_error": 0.0, "watch/clip_fraction": 0.0}
    assert watch.learning(numbers, 0) is not None
    assert watch.stopped_by == "first_ratio"
    # Over 14 tokens a reply it is 0.15 nats of KL at the start.
    start = Watch(WatchSettings())
    assert start.rollout(replace(HEALTHY, kl_nats=14 * shift, kl_error=0.01), 0) is not None
    assert start.stopped_by in ("start_kl", "impossible_kl")
