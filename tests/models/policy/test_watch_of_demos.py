"""No tripwire comes near in learning runs of the demo's size: each statistic stays below half of its bound."""

import json
from collections.abc import Sequence

import pytest
import torch

from models.policy.results import PPOResult
from models.policy.settings import WatchSettings
from models.policy.watch import GAP_ERRORS, impossible_below, rise_of_room, twin_gap_error, unlikely_sum_nats
from models.runtime.results import result_from_json
from tests.models import demo_world

RUNS = 60
REPLIES = 64
MOST = 0.5


def shares_of_bounds(lines: Sequence[dict[str, float]], twin_error: float = 0.0) -> dict[str, float]:
    """How near each wire came in a run's metrics: the largest share of its bound that its statistic reached.

    `twin_error` is the standard error of the twin gap, of which the wire takes two off.
    """
    wires, first = WatchSettings(), lines[0]
    learned = [line for line in lines if "val/ratio_first" in line]
    errors = impossible_below(wires.impossible_kl_errors, REPLIES)
    chance_nats = unlikely_sum_nats(wires.impossible_kl_errors) / REPLIES

    def largest(name: str, bound: float) -> float:
        return max(line[name] for line in learned) / bound

    def risen(name: str, bound: float) -> float:
        return max(rise_of_room(line[name], first[name]) for line in lines) / bound

    return {
        "ratio": largest("watch/ratio_error", wires.max_ratio_error),
        "clip_fraction": largest("watch/clip_fraction", wires.max_clip_fraction),
        "first_ratio": max(abs(line["val/ratio_first"] - 1) for line in learned) / wires.max_first_ratio_error,
        "start_kl": abs(first["objective/kl"]) / wires.max_start_kl_nats,
        # Beyond the wire only where both bounds are.
        "impossible_kl": max(
            min(-line["objective/kl"] / chance_nats, -line["watch/kl_errors"] / errors) for line in lines
        ),
        "entropy": max(wires.min_entropy_share / line["watch/entropy_share"] for line in lines),
        "length": max(max(f, 1 / f) for f in (line["watch/length_factor"] for line in lines)) / wires.max_length_factor,
        "repetition": risen("watch/repeated_ngrams", wires.max_repetition_rise),
        "duplicates": risen("watch/duplicates", wires.max_duplicate_rise),
        "truncation": risen("truncated", wires.max_truncation_rise),
        "twin_gap": (max(line["watch/twin_gap"] for line in lines) - GAP_ERRORS * twin_error) / wires.max_twin_gap,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The demo's initial policy, and room for runs."""
    folder = tmp_path_factory.mktemp("demo")
    demo_world.initial(folder)
    yield folder
    torch.use_deterministic_algorithms(False)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(RUNS))
def test_every_statistic_stays_below_half_of_its_bound(home, seed):
    out = demo_world.learning_run(home / "initial" / "result", home / "runs", seed)
    run = result_from_json(PPOResult, json.loads((out / "result" / "results.json").read_text()), where="the run")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    shares = shares_of_bounds(lines, twin_gap_error(run.watch.end, run.watch.start))
    print(seed, {wire: round(share, 3) for wire, share in shares.items()})
    assert {wire: share for wire, share in shares.items() if share >= MOST} == {}
    assert run.watch.alarms == ()
