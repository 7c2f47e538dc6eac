"""Tripwires, each on rollouts made by hand: what trips it, what just doesn't, and what happens then."""

import math
import random
from dataclasses import replace

import pytest
import torch

from models.policy.prompts import Prompt
from models.policy.results import RolloutSignals
from models.policy.rollout import Rollout
from models.policy.settings import WatchSettings
from models.policy.watch import (
    Watch,
    impossible_below,
    mean_and_error,
    rise_error,
    rise_of_room,
    rollout_signals,
    twin_gap,
    twin_gap_error,
    unlikely_sum_nats,
)
from models.sampling.engine import Completion

ROUNDING = 1e-6
START = RolloutSignals(
    kl_nats=0.0,
    kl_error=0.0,
    replies=64,
    entropy=2.0,
    reply_tokens=20.0,
    truncated=0.1,
    repeated_ngrams=0.05,
    duplicates=0.1,
    stock_reply=0.05,
    score=1.0,
    score_watcher=2.0,
    score_difference_variance=0.64,
)
LEARNED = {"val/ratio_first": 1.0, "watch/ratio_error": 0.1, "watch/clip_fraction": 0.1}


def watch(**settings):
    """A watch that has seen the start."""
    found = Watch(WatchSettings(**settings))
    assert found.rollout(START, 0) is None
    return found


def test_signals_of_a_rollout_by_hand():
    ids = [[5, 6, 5, 6, 5, 6], [7, 8]]
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    logps = torch.where(mask, torch.tensor([[0.5] * 6, [-0.25] * 6]), torch.zeros(2, 6))
    rollout = Rollout(
        prompts=[Prompt("a", "helpful", (), (1,)), Prompt("b", "helpful", (), (1,))],
        completions=[
            Completion(prompt_ids=[1], ids=ids[0], logprobs=[0.0] * 6, finished="length"),
            Completion(prompt_ids=[1], ids=ids[1], logprobs=[0.0] * 2, finished="eos"),
        ],
        texts=["Yes", "yes"],
        scores=torch.tensor([1.0, 3.0]),
        response_mask=mask,
        logps=logps,
        ref_logps=torch.zeros(2, 6),
        entropies=mask.float() * torch.tensor([[1.0], [3.0]]),
        values=torch.zeros(2, 6),
    )
    signals = rollout_signals(rollout, [0.0, 4.0])
    # Sums of log-ratios 6 x 0.5 = 3 and 2 x -0.25 = -0.5: mean 1.25, standard deviation 3.5 / sqrt 2, error 1.75.
    assert signals.kl_nats == pytest.approx(1.25, abs=ROUNDING)
    assert signals.kl_error == pytest.approx(1.75, abs=ROUNDING)
    assert signals.entropy == pytest.approx((6 * 1 + 2 * 3) / 8, abs=ROUNDING)  # every token weighs the same
    assert (signals.reply_tokens, signals.truncated, signals.duplicates, signals.stock_reply) == (4.0, 0.5, 0.5, 1.0)
    assert signals.repeated_ngrams == pytest.approx((1 / 3 + 0) / 2, abs=ROUNDING)  # 5656 6565 5656; none in two tokens
    assert (signals.score, signals.score_watcher) == (2.0, 2.0)
    assert signals.score_difference_variance == pytest.approx(2.0, abs=ROUNDING)  # of 1 and -1


def test_mean_and_its_standard_error():
    assert mean_and_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 0.645497), abs=ROUNDING)
    assert mean_and_error([7.0]) == (7.0, math.inf)


def test_an_ordinary_run_is_left_alone():
    found = watch()
    for iteration in range(1, 30):
        kl = 0.1 * iteration
        assert found.rollout(replace(START, kl_nats=kl, kl_error=0.2, score=1.5, entropy=1.5), iteration) is None
        assert found.learning(LEARNED, iteration) is None
    assert found.calm
    assert (found.stopped_by, found.alarms) == (None, [])


# KL


def test_a_kl_far_below_zero_stops_at_once():
    # 64 replies: 4 standard errors of a normal mean are 4.28 of a mean that estimates its own spread.
    assert watch().rollout(replace(START, kl_nats=-0.42, kl_error=0.1), 1) is None
    reason = watch().rollout(replace(START, kl_nats=-0.44, kl_error=0.1), 1)
    assert reason == "KL -0.44 ± 0.1 nats is below 0 by impossible_kl_errors 4 (iteration 2)"
    assert watch(impossible_kl_errors=0).rollout(replace(START, kl_nats=-9.0, kl_error=0.1), 1) is None


def test_small_rollouts_get_the_bound_of_students_distribution():
    # P(|t| > x) = 6.33e-5 for 15 degrees of freedom at x = 5.49, for a normal variable at 4.
    assert impossible_below(4.0, 16) == pytest.approx(5.49, abs=0.01)
    assert impossible_below(4.0, 64) == pytest.approx(4.28, abs=0.01)
    assert impossible_below(4.0, 100_000) == pytest.approx(4.0, abs=1e-3)
    assert watch().rollout(replace(START, kl_nats=-0.5, kl_error=0.1, replies=16), 1) is None


def test_rounding_is_not_an_impossible_kl():
    # So many replies that chance alone allows 10.36 / 100,000 = 1e-4 nats.
    many = replace(START, kl_error=1e-6, replies=100_000)
    assert watch().rollout(replace(many, kl_nats=-9e-4), 1) is None
    assert watch().rollout(replace(many, kl_nats=-2e-3), 1) is not None


def test_a_kl_that_few_replies_carry_is_not_impossible_where_none_of_them_was_drawn():
    """One reply in a hundred is e^4 times likelier than in the reference, each other one a hair less likely.

    The KL is 0.01 * 4 - 0.99 * 0.0099 = 0.03 nats. A rollout of 64 holds none of those replies in 0.99^64 = 53 % of
    cases, and its mean lies 0.0099 below 0 without any spread: hundreds of standard errors.
    """
    rare, generator = 0.01, random.Random(0)
    others = math.log((1 - rare) / (1 - rare * math.exp(-4)))
    assert others == pytest.approx(-0.00987, abs=1e-5)
    quiet, without = Watch(WatchSettings(max_start_kl_nats=0)), 0
    for iteration in range(1000):
        kls = [4.0 if generator.random() < rare else others for _ in range(64)]
        kl, error = mean_and_error(kls)
        without += kl < 0 and error < 1e-9
        assert quiet.rollout(replace(START, kl_nats=kl, kl_error=error), iteration) is None
    assert without > 400


def test_the_chance_bound_by_hand():
    # A normal variable lies 4 below its mean with a chance of 3.167e-5, and exp(-10.36) is just that.
    assert unlikely_sum_nats(4.0) == pytest.approx(10.36, abs=0.001)
    assert math.exp(-unlikely_sum_nats(4.0)) == pytest.approx(3.167e-5, abs=1e-8)
    # 64 replies: 10.36 / 64 = 0.1619 nats of their mean, far beyond its error either way.
    assert watch().rollout(replace(START, kl_nats=-0.161, kl_error=1e-4), 1) is None
    assert watch().rollout(replace(START, kl_nats=-0.163, kl_error=1e-4), 1) is not None


def test_a_small_bias_is_found_over_ten_rollouts():
    # Each mean lies two errors below 0, which happens; ten of them lie 2 x sqrt 10 = 6.3 below.
    low = replace(START, kl_nats=-0.2, kl_error=0.1)
    found = Watch(WatchSettings())
    reasons = [found.rollout(low if i else START, i) for i in range(11)]
    # In the tenth rollout the window still holds the start's 0: mean -0.18, error 0.03.
    assert reasons[:9] == [None] * 9
    assert reasons[9] == "KL -0.18 ± 0.03 nats over 10 rollouts is below 0 by impossible_kl_errors 4 (iteration 10)"
    assert found.stopped_by == "kl_drift"


def test_a_start_that_differs_from_the_reference_stops():
    for kl in (-0.06, 0.06):
        assert Watch(WatchSettings()).rollout(replace(START, kl_nats=kl, kl_error=1.0), 0) is not None
    assert Watch(WatchSettings()).rollout(replace(START, kl_nats=0.04, kl_error=1.0), 0) is None
    assert Watch(WatchSettings(max_start_kl_nats=0)).rollout(replace(START, kl_nats=0.06, kl_error=1.0), 0) is None


def test_false_alarms_of_the_kl_wires_over_1000_rollouts_of_a_policy_that_hardly_moved():
    """Replies from p, log-ratios of p to a reference a little beside it: the true KL is 0.002 nats per reply.

    Means of 16 replies lie on both sides of 0; neither wire may call one impossible. With stale weights in the
    sampler, replies come from the reference instead and the mean is as far below 0; then they must.
    """
    generator = random.Random(0)
    p, q = [0.5, 0.3, 0.2], [0.505, 0.29, 0.205]
    ratios = [math.log(a / b) for a, b in zip(p, q, strict=True)]
    true_kl = 8 * sum(a * ratio for a, ratio in zip(p, ratios, strict=True))
    assert true_kl == pytest.approx(0.00198, abs=1e-4)

    def kls(weights):
        return [sum(generator.choices(ratios, weights, k=8)) for _ in range(16)]

    quiet, alarms, below = Watch(WatchSettings(max_start_kl_nats=0)), 0, 0
    for iteration in range(1000):
        kl, error = mean_and_error(kls(p))
        below += kl < 0
        alarms += quiet.rollout(replace(START, kl_nats=kl, kl_error=error, replies=16), iteration) is not None
    assert alarms == 0
    assert 200 < below < 500  # means below 0 are common: a wire at 0 would have stopped a third of the rollouts


def test_stale_weights_in_the_sampler_are_found():
    # Replies of the reference, read with the policy: the "KL" is minus the KL of reference to policy.
    generator = random.Random(1)
    p, q = [0.6, 0.25, 0.15], [0.45, 0.35, 0.2]
    ratios = [math.log(a / b) for a, b in zip(p, q, strict=True)]
    stale = Watch(WatchSettings(max_start_kl_nats=0))
    for iteration in range(40):
        kl, error = mean_and_error([sum(generator.choices(ratios, q, k=8)) for _ in range(16)])
        if stale.rollout(replace(START, kl_nats=kl, kl_error=error, replies=16), iteration):
            break
    assert stale.stopped_by in ("impossible_kl", "kl_drift")
    assert iteration < 20


# Collapse


@pytest.mark.parametrize(
    ("wire", "beyond", "within", "off", "words"),
    [
        ("entropy", {"entropy": 0.19}, {"entropy": 0.21}, "min_entropy_share", "10% of the start's 2"),
        ("length", {"reply_tokens": 101.0}, {"reply_tokens": 99.0}, "max_length_factor", "101 tokens against 20"),
        ("length", {"reply_tokens": 3.9}, {"reply_tokens": 4.1}, "max_length_factor", "3.9 tokens against 20"),
        # Half of the way from 0.05 to 1 ends at 0.525; seven tenths of that from 0.1 at 0.73, three fifths at 0.64.
        ("repetition", {"repeated_ngrams": 0.53}, {"repeated_ngrams": 0.52}, "max_repetition_rise", "5% at the start"),
        ("duplicates", {"duplicates": 0.74}, {"duplicates": 0.72}, "max_duplicate_rise", "74% of replies"),
        ("truncation", {"truncated": 0.65}, {"truncated": 0.63}, "max_truncation_rise", "65% of replies were cut"),
    ],
)
def test_collapse_stops_when_it_lasts(wire, beyond, within, off, words):
    collapsed = replace(START, **beyond)
    found = watch()
    assert found.rollout(replace(START, **within), 1) is None
    assert found.calm
    assert found.rollout(collapsed, 2) is None  # patience 2: one rollout may be noise
    assert not found.calm
    reason = found.rollout(collapsed, 3)
    assert words in reason
    assert off in reason
    assert "(iteration 4)" in reason
    assert found.stopped_by == wire
    assert [alarm.iteration for alarm in found.alarms] == [3, 4]
    silent = watch(**{off: 0})
    assert [silent.rollout(collapsed, i) for i in range(1, 4)] == [None] * 3


@pytest.mark.parametrize(
    ("signal", "wire"),
    [("truncated", "truncation"), ("duplicates", "duplicates"), ("repeated_ngrams", "repetition")],
)
def test_a_share_that_began_high_has_its_wire_too(signal, wire):
    # 0.81 to 1 is a rise of 0.19, and all there was room for: no reply is left that ends.
    high = replace(START, **{signal: 0.81})
    found = Watch(WatchSettings())
    assert found.rollout(high, 0) is None
    assert found.rollout(replace(high, **{signal: 0.9}), 1) is None  # 0.09 of 0.19: less than a half
    assert [found.rollout(replace(high, **{signal: 1.0}), i) is None for i in (2, 3)] == [True, False]
    assert found.stopped_by == wire
    assert "100% of the room above it" in found.alarms[-1].found


def test_a_rise_within_its_noise_is_none():
    # One of 64 replies ended at the start, and none now: all the room there was, and a matter of chance.
    almost = replace(START, truncated=63 / 64)
    found = Watch(WatchSettings())
    assert [found.rollout(replace(almost, truncated=share), i) for i, share in enumerate((63 / 64, 1, 1, 1))] == (
        [None] * 4
    )
    assert found.calm
    # And where all were cut at the start, there is no room at all.
    full = Watch(WatchSettings())
    assert [full.rollout(replace(START, truncated=1.0), i) for i in range(3)] == [None] * 3


def test_rises_by_hand():
    assert rise_of_room(1.0, 0.81) == pytest.approx(1.0)
    assert rise_of_room(0.64, 0.1) == pytest.approx(0.6)
    assert rise_of_room(0.05, 0.1) == pytest.approx(-1 / 18)
    assert rise_of_room(1.0, 1.0) == 0.0
    # p = 58/64 = 0.90625: 0.90625 x 0.09375 x 2/32 = 0.00531, of which the root is 0.07287.
    assert rise_error(1.0, 32, 26 / 32, 32) == pytest.approx(0.07287, abs=1e-5)
    # One reply and three, 1 and 0: p = 1/4, 3/16 x (1 + 1/3) = 1/4.
    assert rise_error(1.0, 1, 0.0, 3) == pytest.approx(0.5)


def test_an_alarm_that_passes_starts_again_from_one():
    found, collapsed = watch(), replace(START, entropy=0.1)
    assert [found.rollout(s, i) for i, s in enumerate([collapsed, START, collapsed], 1)] == [None] * 3
    assert found.rollout(collapsed, 4) is not None


def test_two_wires_in_turn_are_not_one_wire_twice():
    found = watch()
    assert found.rollout(replace(START, entropy=0.1), 1) is None
    assert found.rollout(replace(START, duplicates=0.9), 2) is None


def test_one_alarm_is_enough_where_no_rollout_follows():
    assert watch().rollout(replace(START, entropy=0.1), 5, last=True) is not None


@pytest.mark.parametrize("broken", [{"kl_nats": math.nan}, {"score": math.inf}, {"score_watcher": math.nan}])
def test_numbers_that_are_not_finite_always_stop(broken):
    off = dict.fromkeys(("impossible_kl_errors", "min_entropy_share", "max_twin_gap"), 0)
    assert "not a finite number" in watch(**off).rollout(replace(START, **broken), 1)


# Twins


def test_twin_gap_and_its_error_by_hand():
    now = replace(START, score=4.0, score_watcher=3.0, score_difference_variance=0.36, replies=36)
    assert twin_gap(now, START) == 2.0  # gains 3 and 1
    assert twin_gap(START, START) == 0.0
    assert twin_gap_error(now, START) == pytest.approx(math.sqrt(0.64 / 64 + 0.36 / 36), abs=ROUNDING)


def test_twin_gap_stops_beyond_its_noise():
    # Error sqrt(2 x 0.64 / 64) = 0.1414, so that a gap of 2.78 is within two errors of 2.5 and 2.79 is not.
    assert [watch().rollout(replace(START, score=1 + gap), 9, last=True) is None for gap in (2.78, 2.79)] == [
        True,
        False,
    ]
    found = watch()
    assert found.rollout(replace(START, score=4.0), 1) is None
    reason = found.rollout(replace(START, score=4.0), 2)
    assert reason == "the training PM's gain exceeds the watcher's by 3 ± 0.14, above max_twin_gap 2.5 (iteration 3)"
    # A watcher that gains more is no over-optimisation, and without a watcher there is no gap.
    assert watch().rollout(replace(START, score_watcher=9.0), 1, last=True) is None
    assert watch().rollout(replace(START, score=9.0, score_watcher=None), 1, last=True) is None
    assert watch(max_twin_gap=0).rollout(replace(START, score=9.0), 1, last=True) is None


# Learning


@pytest.mark.parametrize("ratio", [1.02, 0.98])
def test_a_first_ratio_that_is_not_one_stops_at_once(ratio):
    disagrees = LEARNED | {"val/ratio_first": ratio}
    assert "(iteration 3)" in watch().learning(disagrees, 2)
    assert watch(max_first_ratio_error=0).learning(disagrees, 2) is None


@pytest.mark.parametrize(
    ("wire", "beyond", "within", "off"),
    [
        ("ratio", {"watch/ratio_error": 1.1}, {"watch/ratio_error": 0.9}, "max_ratio_error"),
        ("clip_fraction", {"watch/clip_fraction": 0.81}, {"watch/clip_fraction": 0.79}, "max_clip_fraction"),
    ],
)
def test_learning_that_explodes_stops_when_it_lasts(wire, beyond, within, off):
    found = watch()
    assert found.learning(LEARNED | beyond, 1) is None
    # The weights that it left are no good ones, however calm the rollout that they write.
    assert found.rollout(START, 2) is None
    assert not found.calm
    assert found.learning(LEARNED | within, 2) is None
    assert found.calm
    assert found.learning(LEARNED | beyond, 3) is None
    assert off in found.learning(LEARNED | beyond, 4)
    assert (found.stopped_by, [alarm.iteration for alarm in found.alarms]) == (wire, [2, 4, 5])
    assert found.metrics(START)["watch/wires_beyond"] == 1.0
    assert watch(patience=1).learning(LEARNED | beyond, 1) is not None
    silent = watch(**{off: 0})
    assert [silent.learning(LEARNED | beyond, i) for i in range(1, 4)] == [None] * 3


def test_a_leap_of_twice_the_bound_needs_no_second_round():
    assert watch().learning(LEARNED | {"watch/ratio_error": 1.99}, 1) is None
    assert watch().learning(LEARNED | {"watch/ratio_error": 2.01}, 1) is not None


def test_metrics_are_relative_to_the_start():
    found = watch()
    now = replace(START, kl_nats=0.5, kl_error=0.25, entropy=0.5, reply_tokens=30.0, score=2.0)
    found.rollout(now, 1)
    assert found.metrics(now) == {
        "watch/kl_errors": 2.0,
        "watch/entropy_share": 0.25,
        "watch/length_factor": 1.5,
        "watch/repeated_ngrams": 0.05,
        "watch/duplicates": 0.1,
        "watch/stock_reply": 0.05,
        "watch/wires_beyond": 0.0,
        "watch/score_watcher": 2.0,
        "watch/twin_gap": 1.0,
    }


def test_a_restored_watch_goes_on_as_if_nothing_had_happened():
    collapsed = replace(START, kl_nats=-0.1, kl_error=0.1, entropy=0.1)
    whole, broken = watch(), watch()
    for each in (whole, broken):
        each.rollout(collapsed, 1)
        each.learning(LEARNED | {"watch/ratio_error": 3.0}, 1)
    again = Watch(WatchSettings())
    again.restore(broken.state)
    tripped = again.rollout(collapsed, 2)
    assert tripped is not None
    assert tripped == whole.rollout(collapsed, 2)
    assert again.state == whole.state
    assert again.learning_in_a_row == {"ratio": 1}


@pytest.mark.parametrize(
    "settings",
    [{"max_twin_gap": -1.0}, {"min_entropy_share": 1.0}, {"max_length_factor": 0.5}, {"patience": 0}],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        WatchSettings(**settings)
